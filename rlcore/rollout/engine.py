"""The protocol that every rollout engine speaks: the embedded `local` one and an SGLang server alike.

Requests carry token ids; text belongs to the caller. Weights arrive in the names of the model hub.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from rlcore.sync.parcel import Packing, Parcel

FinishReason = Literal["stop", "length", "abort"]
PauseMode = Literal["retract", "in_place", "abort"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one request. `temperature` 0 is greedy; `top_k` -1 and `top_p` 1 switch those cuts off.

    `stop_token_ids` end a response and are kept in it; `stop` strings end it after the token completing one.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate.

    `tokens` are response tokens from an earlier, aborted attempt: generation goes on after them and they
    count against `max_new_tokens`. Randomness is a pure function of (`seed`, `key`, position in the response),
    so that neither batching nor resumption changes a draw. `stream` asks for deltas as tokens are made; without
    it one delta comes at the end, which is cheaper.
    """

    id: str
    prompt_tokens: Sequence[int]
    params: SamplingParams
    seed: int = 0
    key: tuple[int, int] = (0, 0)
    tokens: Sequence[int] = ()
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens of a request, with the log-prob of each under the distribution it was drawn from, and the
    weight version that made each; `finish` is set on the last delta only.

    `selections` are those of `rlcore.models.selections` at the place that each token was drawn at, from engines
    that run sparse attention and tell; else it is empty.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float]
    versions: Sequence[int]
    finish: FinishReason | None = None
    selections: Sequence[int] = ()


class LostError(Exception):
    """A request or an update was lost with whoever had it; asked again, it may succeed."""


class WeightUpdate(Protocol):
    """An open weight update. Leaving its context commits; an exception rolls back to the old weights.

    `packing` says how a trainer may pack tensors where they are, for an engine elsewhere.
    """

    @property
    def packing(self) -> "Packing | None": ...

    async def send(self, bucket: "Mapping[str, torch.Tensor] | Parcel") -> None:
        """Hand over some tensors by hub name, or a parcel of them that is packed as `packing` says.

        Raises RlcoreError for a name or shape that the model lacks.
        """
        ...


@dataclass(frozen=True)
class Health:
    """An engine's own account of itself. `running` and `queued` count requests."""

    ok: bool
    version: int
    running: int
    queued: int
    detail: str = ""


class Engine(Protocol):
    """Generates token sequences with weights that change under it.

    `capabilities` names what this engine can do beyond the minimum: "deterministic" (same requests, same
    order, same result), "sleep", "stop_strings", "pause_in_place".
    """

    capabilities: frozenset[str]

    @property
    def version(self) -> int: ...

    @property
    def needs_weights(self) -> bool:
        """Whether nothing can be asked for before the next weight update, as what has been lost comes back."""
        ...

    def generate(self, request: Request) -> AsyncIterator[Delta]: ...

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """End these requests (all of them for None); each yields a last delta with what it has made."""
        ...

    async def pause(self, mode: PauseMode = "retract") -> None: ...

    async def resume(self) -> None: ...

    def weight_update(self, version: int) -> AbstractAsyncContextManager[WeightUpdate]: ...

    async def flush(self) -> None:
        """Drop every cached key and value that no running request needs."""
        ...

    async def sleep(self) -> None: ...

    async def wake(self) -> None: ...

    async def health(self) -> Health: ...

    async def close(self) -> None: ...
