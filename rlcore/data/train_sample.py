"""TrainSample: a finished sample as the trainer needs it, as plain numbers that can cross processes."""

from collections.abc import Sequence
from dataclasses import dataclass


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
