"""Sample, the one record that travels from prompt to gradient, and what belongs to it.

A sample starts as a prompt, gains tokens from an engine and a reward from a plugin, and ends in a
training batch. Nothing here imports torch: plugins read samples in processes that have none.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

Message = dict[str, Any]

_NUMBERS = {"prompt_tokens", "tokens", "log_probs", "loss_mask", "versions", "selections"}


class Status(StrEnum):
    """How a sample's generation stands."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(slots=True)
class Sample:
    """One response to one prompt.

    The four per-token lists (`tokens`, `log_probs`, `loss_mask`, `versions`) cover the response only and
    have equal length. `log_probs` are those of the distribution that was sampled from (temperature, top-p
    and top-k applied), natural logarithm. `selections`, where the engine runs sparse attention and says what
    it selected, is a fifth (`rlcore.models.selections`), else empty. `group` counts prompts over the whole run
    and `index` counts the samples of one prompt: together they identify a sample and seed its randomness.
    """

    prompt: str | list[Message]
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    group: int = 0
    index: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    loss_mask: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    response: str = ""
    status: Status = Status.PENDING
    reward: float | None = None
    reward_parts: dict[str, float] = field(default_factory=dict)
    selections: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens in prompt and response together."""
        return len(self.prompt_tokens) + len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form; `from_dict` reads it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # Thousands of numbers a sample: a deep copy would take each in hand.
        return {
            name: value.copy() if name in _NUMBERS else copy.deepcopy(value) for name, value in values.items()
        }

    def without_response(self) -> "Sample":
        """The same prompt, group and index, of which nothing is made yet."""
        return Sample(self.prompt, self.label, self.metadata, self.group, self.index, self.prompt_tokens)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sample":
        return cls(**{**data, "status": Status(data["status"])})
