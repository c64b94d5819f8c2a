"""The loop of reinforcement learning: sync, roll out, score, estimate, train; again, until the steps are done.

Weights are synced at the start of what needs them, so that a step ends with the optimizer: whatever
interrupts the run later finds it at a step's boundary, and the next attempt goes on from there. What is
generated meanwhile for the next steps is the pipeline's business.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from rlcore.config.rules import batch_size
from rlcore.config.schema import Recipe
from rlcore.controller.batch import estimate_advantages, split_updates
from rlcore.controller.evaluation import EvaluationSet
from rlcore.controller.metrics import rollout_metrics, staleness_metrics, update_metrics
from rlcore.controller.pipeline import Pipeline, make_pipeline
from rlcore.controller.policy import Policy
from rlcore.controller.selection import AlgorithmPlugins
from rlcore.controller.session import Session
from rlcore.controller.sync import sync_weights, with_those_left
from rlcore.controller.turns import Turns
from rlcore.controller.verification import Verifier
from rlcore.data.prompts import PromptSource
from rlcore.data.sample import Sample
from rlcore.data.train_sample import TrainSample
from rlcore.rollout.engine import Engine
from rlcore.rollout.generation import Generator
from rlcore.rollout.responses import OnProgress
from rlcore.telemetry.rollouts import TRAINING, write_samples
from rlcore.trainer.objectives import PolicyObjective


@dataclass(frozen=True)
class Actors:
    """Those who do the work of a step."""

    policy: Policy
    engine: Engine
    generator: Generator
    judge: Generator
    source: PromptSource
    turns: Turns


class Grpo:
    """Trains a policy, step by step, from rewards on its own samples."""

    def __init__(
        self,
        recipe: Recipe,
        actors: Actors,
        algorithm: AlgorithmPlugins,
        evaluations: Sequence[EvaluationSet],
        session: Session,
    ) -> None:
        self._recipe = recipe
        self._actors = actors
        self._estimator = algorithm.estimator
        self._objective = PolicyObjective(algorithm.loss, recipe.algorithm)
        self._evaluations = evaluations
        self._session = session
        self._engine_is_fresh = False
        self._turns = actors.turns
        self._verifier = Verifier.from_recipe(recipe, actors.policy, actors.turns.for_a_score)
        self._synced: dict[str, float] = {}

    async def run(self, total_steps: int) -> None:
        """Train until `total_steps` are done, evaluating and saving as the recipe says."""
        names = [problems.settings.name for problems in self._evaluations]
        # The last attempt may have ended between a step and the evaluation that follows it.
        if self._is_evaluation_due(total_steps) and not self._session.is_evaluated(names):
            await self._evaluate()
        pipeline = make_pipeline(
            self._recipe.rollout,
            self._actors.generator,
            self._actors.source,
            self._session.source,
            total_steps,
            self._sync,
            self._show("rollout"),
        )
        try:
            while self._session.done < total_steps:
                await self._step(pipeline)
                if self._is_evaluation_due(total_steps):
                    await self._evaluate()
        finally:
            await pipeline.close()
            await self._turns.end()

    def _is_evaluation_due(self, total_steps: int) -> bool:
        settings, done = self._recipe.eval, self._session.done
        if done == 0:
            return settings.before_train
        return done == total_steps or bool(settings.every and done % settings.every == 0)

    async def _step(self, pipeline: Pipeline) -> None:
        session, step = self._session, self._session.done + 1
        with session.timer("rollout"):
            rollout = await self._actors.policy.beside(pipeline.take(step), self._supply)
        samples = [sample for group in rollout.groups for sample in group]
        if self._recipe.telemetry.save_rollouts:
            write_samples(session.folder.paths.rollouts, TRAINING, step, samples)
        with self._handover():
            await self._turns.to_training()
        with session.timer("train"):
            trained = await pipeline.train(partial(self._train, samples))
        self._engine_is_fresh = False
        with session.timer("rollout"):
            state = await pipeline.settle()
        # Nothing is awaited from here to the end of the step.
        metrics = {**rollout_metrics(samples), **staleness_metrics(samples, session.done), **rollout.metrics}
        session.end_step({**metrics, **trained, **self._synced, **self._turns.metrics}, state)

    def _train(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Turn a rollout into one or more optimizer steps; returns their metrics, averaged."""
        policy = self._actors.policy
        updates = split_updates(samples, batch_size(self._recipe))
        plain = [self._train_sample(sample) for sample in samples]
        log_probs = policy.log_probs(plain) if self._needs_log_probs(len(updates)) else None
        reference = policy.reference_log_probs(plain) if self._needs_reference() else None
        advantages, estimate = estimate_advantages(
            samples, self._estimator, self._recipe.algorithm, log_probs, reference
        )
        batch = [
            replace(
                one,
                advantages=advantages[i].tolist(),
                old_log_probs=log_probs and log_probs[i].tolist(),
                ref_log_probs=reference and reference[i].tolist(),
            )
            for i, one in enumerate(plain)
        ]
        rows = []
        for update in updates:
            with self._session.changing_weights():
                rows.append(policy.train_step([batch[i] for i in update], self._objective))
        return {**update_metrics(rows), **estimate.metrics}

    def _train_sample(self, sample: Sample) -> TrainSample:
        version = self._session.done
        return TrainSample(
            name=f"sample {sample.index} of prompt {sample.group}",
            tokens=[*sample.prompt_tokens, *sample.tokens],
            prompt_length=len(sample.prompt_tokens),
            loss_mask=sample.loss_mask,
            rollout_log_probs=sample.log_probs,
            fresh=[made == version for made in sample.versions],
            selections=sample.selections or None,
        )

    def _needs_log_probs(self, updates: int) -> bool:
        """Ratios are between the trainer's own probabilities: 1 with one update, whatever drew the tokens."""
        return (
            updates > 1
            or "log_probs" in self._estimator.needs
            or bool(self._recipe.algorithm.kl.reward_coefficient)
        )

    def _needs_reference(self) -> bool:
        kl = self._recipe.algorithm.kl
        return bool(kl.loss_coefficient or kl.reward_coefficient) or "ref_log_probs" in self._estimator.needs

    async def _sync(self) -> None:
        """Give the engine the trainer's weights, unless it has them."""
        if self._engine_is_fresh and not self._actors.engine.needs_weights:
            return
        self._engine_is_fresh = False
        with self._session.timer("sync"):
            what = f"sync of weights {self._session.done}"
            self._synced = await with_those_left(self._give_weights, what)
        self._engine_is_fresh = True

    async def _give_weights(self) -> dict[str, float]:
        engine, policy, version = self._actors.engine, self._actors.policy, self._session.done
        with self._handover():
            await self._turns.to_sync()
        # Requests that run have their past computed anew: a token's log-prob is of its version alone.
        await engine.pause("retract")
        try:
            report = await sync_weights(engine, policy, version, self._recipe.sync.bucket_mib)
        finally:
            with self._handover():
                await self._turns.to_generation()
        return {**report.metrics, **await self._verifier.check(engine, version)}

    async def _supply(self) -> None:
        """Should an engine that had the weights lose all its servers, give them to those that come instead."""
        if self._engine_is_fresh and self._actors.engine.needs_weights:
            await self._actors.policy.beside(self._sync())

    def _handover(self) -> AbstractContextManager[None]:
        return self._session.timer("handover") if self._turns.are_taken else nullcontext()

    async def _evaluate(self) -> None:
        session = self._session
        for problems in self._evaluations:
            await self._sync()
            with session.timer("evaluation"):
                evaluating = problems.evaluate(
                    self._actors.judge,
                    self._recipe.seed,
                    session.folder.paths.rollouts,
                    session.done,
                    self._show(f"evaluation {problems.settings.name}"),
                )
                metrics = await self._actors.policy.beside(evaluating, self._supply)
            session.evaluation(metrics)

    def _show(self, phase: str) -> OnProgress:
        def show(done: int, total: int, tokens: int) -> None:
            self._session.watchdog.progress(f"{phase}: {done} of {total}")
            self._session.progress.status(phase, done, total)

        return show
