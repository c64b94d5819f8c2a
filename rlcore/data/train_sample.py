"""TrainSample: a finished sample as the trainer needs it, as plain numbers that can cross processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlcore.errors import Problem, raise_if_any

# What a micro-batch has of all its samples or of none: it must not matter which ones are packed together.
_SHARED = ("advantages", "old_log_probs", "ref_log_probs", "rollout_log_probs")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """A prompt and its response.

    `tokens` is both together, of which the first `prompt_length` (at least 1) are the prompt. All other
    sequences have one entry per response token; log-probs are natural logarithms. `fresh` marks tokens that the
    engine drew with the weights at this rollout's start (all of them by default): there, engine and trainer
    must agree; `selections` say what sparse attention selected in the engine (`rlcore.models.selections`).
    `name` identifies the sample in messages.
    """

    name: str
    tokens: Sequence[int]
    prompt_length: int
    loss_mask: Sequence[float]
    advantages: Sequence[float] | None = None
    old_log_probs: Sequence[float] | None = None
    ref_log_probs: Sequence[float] | None = None
    rollout_log_probs: Sequence[float] | None = None
    fresh: Sequence[bool] | None = None
    selections: Sequence[int] | None = None

    @property
    def response_length(self) -> int:
        return len(self.tokens) - self.prompt_length


def check_samples(samples: Sequence[TrainSample]) -> None:
    """Raise one RlcoreError for the samples of a step that cannot be trained on, or not together."""
    raise_if_any([*_empty(samples), *_unlike(samples)])


def _empty(samples: Sequence[TrainSample]) -> Iterator[Problem]:
    for sample in samples:
        if sample.prompt_length < 1 or sample.response_length < 1:
            message = "needs at least one prompt token and one response token to be trained on"
            yield Problem(sample.name, message)


def _unlike(samples: Sequence[TrainSample]) -> Iterator[Problem]:
    for field in _SHARED:
        lacking = [sample for sample in samples if getattr(sample, field) is None]
        if lacking and len(lacking) < len(samples):
            having = next(sample for sample in samples if getattr(sample, field) is not None)
            message = f"has no {field}, which {having.name} has"
            yield Problem(lacking[0].name, message, "give it to all samples of a step, or to none")
