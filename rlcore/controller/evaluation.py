"""Evaluation: a problem set, sampled by the engine, judged by rewards, summed up as pass@1 and pass@k."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlcore.config.schema import EvalDataset
from rlcore.data.chat import Prompt
from rlcore.data.prompts import PromptSource
from rlcore.data.sample import Sample


@dataclass(frozen=True)
class EvaluationSet:
    """A problem set of the recipe, its prompts tokenized."""

    settings: EvalDataset
    prompts: Sequence[Prompt]

    def groups(self, seed: int) -> list[list[Sample]]:
        """Fresh samples for every problem, in the order of the file."""
        source = PromptSource(
            self.prompts, seed=seed, shuffle=False, samples_per_prompt=self.settings.samples_per_prompt
        )
        return source.next(len(self.prompts))
