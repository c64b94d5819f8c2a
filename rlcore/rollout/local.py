"""The embedded engine: in-flight batching over the transformers model of a checkpoint, in this process.

It steps inside the event loop and lets others run between steps, so that equal requests in equal order
give equal results. Rows, cache, sampling and weights have modules of their own; here are the queue, the
life of a request, and pausing.
"""

import asyncio
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlcore.bridge.safetensors_io import SafetensorsFolder
from rlcore.errors import fail
from rlcore.rollout.engine import Delta, FinishReason, Health, PauseMode, Request
from rlcore.rollout.local_batch import Batch, Row
from rlcore.rollout.local_cache import ATTENTION
from rlcore.rollout.local_experts import align_experts
from rlcore.rollout.local_linear import pack_linears
from rlcore.rollout.local_weights import StagedUpdate, hub_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(eq=False)
class Ticket(Row):
    """A row with its way back to whoever waits. `order` is its place in line, `sent` its delivered tokens."""

    order: int = 0
    sent: int = 0
    inbox: "asyncio.Queue[Delta | Exception]" = field(default_factory=asyncio.Queue)

    @property
    def watched(self) -> bool:
        """Whether Python looks at every new token."""
        return self.request.stream or bool(self.params.stop)


class LocalEngine:
    """Generates with the transformers implementation of a checkpoint; `rlcore.rollout.engine.Engine`.

    A weight update under running requests keeps their cached keys and values (as `pause("in_place")` does);
    `pause("retract")` before it has them recomputed at `resume`. Greedy requests report log-probs at
    temperature 1.
    """

    needs_weights = False

    def __init__(
        self,
        checkpoint: Path,
        *,
        concurrency: int = 64,
        dtype: str = "float32",
        overrides: Mapping[str, Any] = MappingProxyType({}),
        mend: "Callable[[PreTrainedModel], None]" = lambda model: None,
        serve: "Callable[[PreTrainedModel], None]" = lambda model: None,
    ) -> None:
        """Load a folder in Hugging Face format; `concurrency` sequences decode together.

        `overrides` replace values of its config.json; `mend` and `serve` are the `mend_transformers` and
        `serve_transformers` of its ModelSpec.
        Raises RlcoreError for a folder that transformers cannot read.
        """
        try:
            values = json.loads((Path(checkpoint) / "config.json").read_text()) | dict(overrides)
            config = AutoConfig.for_model(**values)
            model = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=dtype)
        except (OSError, ValueError) as error:
            raise fail(str(checkpoint), f"transformers cannot load it: {error}") from error
        mend(model)
        serve(model)
        with SafetensorsFolder(Path(checkpoint)) as folder:
            left_out = folder.tensors.keys() - hub_tensors(model)
        has_tokenizer = (Path(checkpoint) / "tokenizer.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint) if has_tokenizer else None
        self._set_up(model, tokenizer, concurrency, left_out)

    @classmethod
    def from_model(
        cls,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        concurrency: int = 64,
    ) -> Self:
        """An engine on a model that is already in memory, whose attention function it replaces.

        `tokenizer` serves stop strings only.
        """
        engine = cls.__new__(cls)
        engine._set_up(model, tokenizer, concurrency)
        return engine

    def _set_up(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase | None",
        concurrency: int,
        left_out: Collection[str] = (),
    ) -> None:
        model.eval().set_attn_implementation(ATTENTION)
        align_experts(model)
        self.capabilities = frozenset(
            {"deterministic", "sleep", "pause_in_place"} | ({"stop_strings"} if tokenizer else set())
        )
        self._model = model
        self._packed = pack_linears(model)
        self._left_out = left_out
        self._tokenizer = tokenizer
        self._batch = Batch(model, concurrency)
        self._tickets: dict[str, Ticket] = {}
        self._waiting: deque[Row] = deque()
        self._arrivals = count()
        self._driver: asyncio.Task[None] | None = None
        self._version = 0
        self._paused = self._asleep = False
        self._failure = ""

    @property
    def version(self) -> int:
        return self._version

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """See `Engine.generate`. Raises RlcoreError for a request that this model cannot serve."""
        self._check(request)
        ticket = self._tickets[request.id] = Ticket(request, order=next(self._arrivals))
        finish = self._finish(ticket)
        if finish:
            self._close(ticket, finish)
        else:
            self._waiting.append(ticket)
            self._kick()
        try:
            while True:
                delta = await ticket.inbox.get()
                if isinstance(delta, Exception):
                    raise delta
                yield delta
                if delta.finish:
                    return
        finally:
            if self._tickets.get(request.id) is ticket:
                self._end([ticket])

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """See `Engine.abort`; unknown ids are those that have just ended, and are passed over."""
        names = tuple(self._tickets) if ids is None else ids
        self._end([self._tickets[name] for name in names if name in self._tickets])

    async def pause(self, mode: PauseMode = "retract") -> None:
        """Stop stepping. "retract" drops cached keys and values, "in_place" keeps them, "abort" ends all."""
        self._paused = True
        if mode == "retract":
            self._retract()
        elif mode == "abort":
            await self.abort()

    async def resume(self) -> None:
        self._paused = False
        self._kick()

    @asynccontextmanager
    async def weight_update(self, version: int) -> AsyncIterator[StagedUpdate]:
        """See `Engine.weight_update`; the new weights count from the next step on."""
        update = StagedUpdate(hub_tensors(self._model), self._left_out)
        yield update
        self._collect()
        update.commit()
        for layer in self._packed:
            layer.pack()
        self._batch.forget_prefixes()
        self._version = version

    async def flush(self) -> None:
        if self._batch.rows:
            self._batch.forget_prefixes()
        else:
            self._batch.release()

    async def sleep(self) -> None:
        """Give the cache's memory back; running requests go on after `wake`."""
        self._asleep = True
        self._retract()
        self._batch.release()

    async def wake(self) -> None:
        self._asleep = False
        self._kick()

    async def health(self) -> Health:
        running = len(self._batch.rows)
        return Health(not self._failure, self._version, running, len(self._waiting), self._failure)

    async def close(self) -> None:
        """End every request as aborted and give the cache back."""
        await self.abort()
        self._batch.release()

    def _check(self, request: Request) -> None:
        place = f"request {request.id}"
        prompt, new = len(request.prompt_tokens), request.params.max_new_tokens
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", prompt + new)
        if request.id in self._tickets:
            raise fail(place, "a request of this id is running", "give every request its own id")
        if not request.prompt_tokens:
            raise fail(place, "the prompt is empty")
        if prompt + new > longest:
            raise fail(
                place,
                f"{prompt} prompt tokens and up to {new} new ones exceed the model's {longest} positions",
                "lower rollout.max_response_tokens, or set rollout.max_context_tokens",
            )
        largest = max(*request.prompt_tokens, *request.tokens, 0)
        if largest >= self._batch.vocab_size:
            raise fail(place, f"token {largest} is outside the vocabulary of {self._batch.vocab_size}")
        if request.params.stop and not self._tokenizer:
            raise fail(
                place, "stop strings need a tokenizer, and the checkpoint has none", "use stop_token_ids"
            )

    def _kick(self) -> None:
        """Have a driver at work. Its task ends with the work, so that event loops may come and go."""
        if self._runnable() and (self._driver is None or self._driver.done()):
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    def _runnable(self) -> bool:
        return bool(self._waiting or self._batch.rows) and not (self._paused or self._asleep)

    async def _drive(self) -> None:
        try:
            while self._runnable():
                self._step()
                await asyncio.sleep(0)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            for ticket in self._tickets.values():
                ticket.inbox.put_nowait(error)
            self._tickets.clear()
            self._waiting.clear()
            self._batch.remove(tuple(self._batch.rows))

    def _step(self) -> None:
        done = self._batch.step(self._waiting)
        seen = [ticket for ticket in self._batch.rows if ticket.watched and ticket not in done]
        for ticket in (*done, *seen):
            self._batch.collect(ticket, self._version)
        ended = {ticket: finish for ticket in (*done, *seen) if (finish := self._finish(ticket))}
        self._batch.remove(tuple(ended))
        for ticket, finish in ended.items():
            self._close(ticket, finish)
        for ticket in seen:
            if ticket.request.stream and ticket not in ended:
                self._deliver(ticket)

    def _finish(self, ticket: Ticket) -> FinishReason | None:
        """Why this request is done, judged by the tokens that Python has seen."""
        params, tokens = ticket.params, (*ticket.request.tokens, *ticket.tokens)
        if tokens and tokens[-1] in params.stop_token_ids:
            return "stop"
        if params.stop and self._says_stop(tokens, params.stop):
            return "stop"
        return "length" if len(tokens) >= params.max_new_tokens else None

    def _says_stop(self, tokens: Sequence[int], stop: Sequence[str]) -> bool:
        # No token is shorter than a byte, so a stop string that the newest one completes lies in this tail.
        tail = max(len(text.encode()) for text in stop)
        text = self._tokenizer.decode(tokens[-tail:])
        return any(word in text for word in stop)

    def _collect(self) -> None:
        for ticket in self._batch.rows:
            self._batch.collect(ticket, self._version)

    def _retract(self) -> None:
        """Send all rows back to the queue, in their old order, to be computed anew."""
        self._collect()
        self._batch.remove(tuple(self._batch.rows))
        self._waiting = deque(sorted(self._tickets.values(), key=lambda ticket: ticket.order))

    def _end(self, tickets: Iterable[Ticket]) -> None:
        """Abort these, each with what it has made."""
        tickets = tuple(tickets)
        running = [ticket for ticket in tickets if ticket.slot is not None]
        for ticket in running:
            self._batch.collect(ticket, self._version)
        self._batch.remove(running)
        self._waiting = deque(ticket for ticket in self._waiting if ticket not in tickets)
        for ticket in tickets:
            self._close(ticket, "abort")

    def _close(self, ticket: Ticket, finish: FinishReason) -> None:
        del self._tickets[ticket.request.id]
        if math.isfinite(sum(ticket.log_probs)):
            self._deliver(ticket, finish)
        else:
            message = f"weights of version {self._version} give logits that are not finite"
            ticket.inbox.put_nowait(fail(f"request {ticket.request.id}", message))

    def _deliver(self, ticket: Ticket, finish: FinishReason | None = None) -> None:
        since, ticket.sent = ticket.sent, len(ticket.tokens)
        ticket.inbox.put_nowait(
            Delta(
                ticket.tokens[since:],
                ticket.log_probs[since:],
                ticket.versions[since:],
                finish,
                ticket.selections[since:],
            )
        )
