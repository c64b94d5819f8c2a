"""Puts a reinforcement-learning run together and runs it to its end: what `rlcore train` does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass

from rlcore.cluster.environment import exported
from rlcore.config.rules import batch_size, offloads_train, samples_per_rollout
from rlcore.controller.assembly import make_generator, running_engine, running_policy
from rlcore.controller.checkpoints import RunState
from rlcore.controller.evaluation import EvaluationSet
from rlcore.controller.grpo import Actors, Grpo
from rlcore.controller.model_folder import save_model
from rlcore.controller.preparation import Prepared, evaluation_sets, load_prompts
from rlcore.controller.run_start import RunPlace, record, restore, start
from rlcore.controller.selection import AlgorithmPlugins, select_algorithm
from rlcore.controller.session import open_session
from rlcore.controller.site import chosen_site
from rlcore.controller.turns import Turns
from rlcore.data.chat import Prompt
from rlcore.data.prompts import PromptSource
from rlcore.registry.loading import Plugin
from rlcore.rollout.rewards import RewardRunner
from rlcore.telemetry.log_files import LogFolder
from rlcore.telemetry.run_folder import RunFolder, RunPaths


@dataclass(frozen=True)
class Materials:
    """What a run is made of, read and checked; nothing has been started or written yet."""

    prepared: Prepared
    algorithm: AlgorithmPlugins
    prompts: Sequence[Prompt]
    evaluations: Sequence[EvaluationSet]

    def source(self) -> PromptSource:
        """The prompts in the order of this run, from the beginning."""
        recipe = self.prepared.recipe
        return PromptSource(
            self.prompts,
            seed=recipe.seed,
            shuffle=recipe.data is None or recipe.data.shuffle,
            samples_per_prompt=recipe.rollout.samples_per_prompt,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the run: as the recipe says, or whole passes over the prompts."""
        recipe = self.prepared.recipe
        if recipe.train.steps:
            return recipe.train.steps
        assert recipe.train.epochs
        return max(1, recipe.train.epochs * len(self.prompts) // recipe.rollout.prompts_per_step)

    @property
    def total_updates(self) -> int:
        """Optimizer steps of the run."""
        recipe = self.prepared.recipe
        return self.total_steps * -(-samples_per_rollout(recipe) // batch_size(recipe))


def gather(prepared: Prepared) -> Materials:
    """Read the datasets and load the plugins of a run; raises RlcoreError for what is wrong with them."""
    recipe = prepared.recipe
    assert recipe.data is not None
    algorithm = select_algorithm(prepared.catalog, recipe)
    return Materials(prepared, algorithm, load_prompts(prepared, recipe.data), evaluation_sets(prepared))


def train(materials: Materials, place: RunPlace, quiet: bool = False) -> None:
    """Run to the end, or until interrupted; the run folder then holds a checkpoint to resume from."""
    with exported(materials.prepared.recipe.cluster.env):
        asyncio.run(_train(materials, place, quiet))


async def _train(materials: Materials, place: RunPlace, quiet: bool) -> None:
    prepared, recipe = materials.prepared, materials.prepared.recipe
    async with _scorers(materials, place) as (scorer, judge):
        # The trainer first: it says best what is wrong with a checkpoint.
        updates, temperature = materials.total_updates, recipe.rollout.temperature
        with (
            chosen_site(prepared, serves=True) as site,
            running_policy(
                prepared, site, recipe.optimizer, updates, temperature=temperature, quiet=quiet
            ) as policy,
        ):
            if offloads_train(recipe):
                # Servers measure what is free when they start.
                policy.release()
            logs = LogFolder(place.staging)
            async with running_engine(prepared, site, logs) as engine:
                turns = Turns(recipe, policy, engine)
                actors = Actors(
                    policy=policy,
                    engine=engine,
                    generator=make_generator(prepared, engine, scorer, materials.algorithm.filters),
                    judge=make_generator(prepared, engine, judge, name="evaluation, "),
                    source=materials.source(),
                    turns=turns,
                )
                await turns.to_training()
                plugins = _plugins(materials, scorer, judge)
                folder = start(plugins, place)
                logs.move(folder.paths.logs)
                state = restore(folder, place, RunState(0, actors.source.state()), policy.load)
                record(folder, prepared.loaded, plugins)
                await _run(materials, actors, folder, state, quiet)
            if recipe.checkpoints.hf:
                save_model(policy, prepared.recipe, folder.path / "hf")


def _plugins(materials: Materials, *runners: RewardRunner) -> list[Plugin]:
    """Every plugin that has a part in the run."""
    rewards = (plugin for runner in runners for plugin in runner.plugins)
    return [*materials.prepared.model.plugins, *materials.algorithm.plugins, *rewards]


async def _run(materials: Materials, actors: Actors, folder: RunFolder, state: RunState, quiet: bool) -> None:
    """Take up the run at `state`, and take it to its end."""
    recipe = materials.prepared.recipe
    actors.source.restore(state.source)
    total = materials.total_steps
    with (
        closing(materials.algorithm),
        open_session(recipe, folder, total, state, actors.policy, quiet=quiet) as session,
    ):
        await Grpo(recipe, actors, materials.algorithm, materials.evaluations, session).run(total)


@asynccontextmanager
async def _scorers(materials: Materials, place: RunPlace) -> AsyncIterator[tuple[RewardRunner, RewardRunner]]:
    """The rewards of training and of evaluation, often the same; their processes end with the body."""
    prepared, recipe = materials.prepared, materials.prepared.recipe
    failures = RunPaths(place.path).logs / "failed-samples.jsonl"
    scorer = RewardRunner.from_recipe(recipe.rewards, prepared.catalog, failures=failures)
    judge = scorer
    try:
        scorer.check_dataset(prompt.row for prompt in materials.prompts)
        if recipe.eval.rewards is not None:
            judge = RewardRunner.from_recipe(recipe.eval.rewards, prepared.catalog, "eval.rewards", failures)
        for problems in materials.evaluations:
            judge.check_dataset(prompt.row for prompt in problems.prompts)
        yield scorer, judge
    finally:
        await judge.close()
        if judge is not scorer:
            await scorer.close()
