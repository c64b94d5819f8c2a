"""Evaluation: problem sets, sampled by the engine, judged by rewards, summed up as pass@1 and pass@k."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlcore.config.schema import EvalDataset
from rlcore.controller.metrics import evaluation_metrics
from rlcore.data.chat import Prompt
from rlcore.data.prompts import PromptSource
from rlcore.rollout.generation import Generator
from rlcore.rollout.responses import OnProgress
from rlcore.telemetry.rollouts import evaluation_kind, write_samples


@dataclass(frozen=True)
class EvaluationSet:
    """A problem set of the recipe, its prompts tokenized."""

    settings: EvalDataset
    prompts: Sequence[Prompt]

    async def evaluate(
        self, judge: Generator, seed: int, rollouts: Path, step: int, on_progress: OnProgress
    ) -> dict[str, float]:
        """Answer every problem, keep the samples in folder `rollouts`, and return the metrics."""
        settings = self.settings
        source = PromptSource(
            self.prompts, seed=seed, shuffle=False, samples_per_prompt=settings.samples_per_prompt
        )
        groups = await judge.generate(source.next(len(self.prompts)), settings, on_progress=on_progress)
        samples = [sample for group in groups for sample in group]
        write_samples(rollouts, evaluation_kind(settings.name), step, samples)
        return evaluation_metrics(settings.name, groups)
