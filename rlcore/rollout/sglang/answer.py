"""What a server has said to one request so far: tokens, their log-probs and the weights that made them.

Servers stream either all that they have made or what is new, and send the whole once more when a request is cut
short in the queue; the count of tokens that comes with each part tells which of them are new.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlcore.errors import fail
from rlcore.rollout.engine import Delta, FinishReason

FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass
class Answer:
    """Grows with each part of a stream. Until `finish` is set, `versions` are the server's latest when a part
    came: those of tokens that were under way during an update may be older."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: FinishReason | None = None

    def take(self, meta: Mapping[str, Any]) -> None:
        """Add a part, given by its `meta_info`.

        Raises RlcoreError where the server says why it made none, or does not give all log-probs.
        """
        self._forget(meta["completion_tokens"])
        listed: Sequence[Any] = meta.get("output_token_logprobs") or ()
        missing = meta["completion_tokens"] - len(self.tokens)
        if missing > len(listed):
            raise fail(f"request {meta['id']}", f"of {missing} new tokens {len(listed)} have log-probs")
        new = listed[len(listed) - missing :]
        version = version_number(meta["weight_version"])
        if any(log_prob is None for log_prob, *_ in new):
            raise fail(f"request {meta['id']}", f"weights of version {version} give logits that are not finite")
        self.tokens += [token for _, token, *_ in new]
        self.log_probs += [log_prob for log_prob, *_ in new]
        self.versions += [version] * len(new)
        if reason := meta.get("finish_reason"):
            self._end(meta, reason)

    def since(self, sent: int) -> Delta:
        """All but the first `sent` tokens."""
        return Delta(self.tokens[sent:], self.log_probs[sent:], self.versions[sent:], self.finish)

    def _forget(self, kept: int) -> None:
        """Servers take tokens back that follow a stop."""
        del self.tokens[kept:], self.log_probs[kept:], self.versions[kept:]

    def _end(self, meta: Mapping[str, Any], reason: Mapping[str, Any]) -> None:
        if reason.get("status_code"):
            raise fail(f"request {meta['id']}", f"the server gave it up: {reason.get('message')}")
        self.finish = FINISH[reason["type"]]
        for span in meta.get("weight_versions", ()):
            numbers = [version_number(span["version"])] * (span["end"] - span["start"])
            self.versions[span["start"] : span["end"]] = numbers


def version_number(name: str) -> int:
    """The number of a server's weight version; one that was never given a number has 0."""
    return int(name) if name.isdecimal() else 0
