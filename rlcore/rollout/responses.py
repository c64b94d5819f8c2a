"""Turns samples into responses: one request a sample, resumed where an earlier rollout cut it short.

A request that is lost is asked again, after what it has made. A sample whose request fails for good is marked
and explained; it never takes the others down with it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, cast

from rlcore.config.generation import Sampling
from rlcore.data.sample import Sample, Status
from rlcore.errors import RlcoreError, fail
from rlcore.rollout.engine import Delta, Engine, Request, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Group = list[Sample]
OnProgress = Callable[[int, int, int], None]

STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}
# A failed sample is among them: its group may come again, out of a checkpoint that was made meanwhile.
UNFINISHED = (Status.PENDING, Status.ABORTED, Status.FAILED)
# Before a lost request is asked again, and twice that before the next time.
BACKOFF_SECONDS = 0.5
LOOK_SECONDS = 0.2


class Responder:
    """Asks an engine for the responses of whole groups.

    `stop_token_ids` are the model's own; `seed` names the run's randomness, of which every sample has its
    share by group and index. `max_context_tokens` bounds prompt and response together. With
    `mask_offpolicy`, tokens that other weights made than the engine's present ones get no loss. A request
    without a new token for `timeout` seconds counts as lost; a lost one is asked again up to `retries` times.
    `name` goes before the names of its requests.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        stop_token_ids: Sequence[int],
        seed: int,
        max_context_tokens: int | None = None,
        mask_offpolicy: bool = False,
        timeout: float | None = None,
        retries: int = 0,
        name: str = "",
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stop_token_ids = tuple(stop_token_ids)
        self._seed = seed
        self._max_context_tokens = max_context_tokens
        self._mask_offpolicy = mask_offpolicy
        self._timeout = timeout
        self._retries = retries
        self._name = name
        self._retried = 0

    async def respond(self, group: Group, sampling: Sampling, on_sample: Callable[[int], None]) -> list[str]:
        """Finish every sample of a group, in place; returns what went wrong, one line a failed sample.

        `on_sample` is told the number of new tokens as each sample ends.
        """
        if self._mask_offpolicy:
            mask_older([group], self._engine.version)
        open_samples = [sample for sample in group if sample.status in UNFINISHED]
        errors = await asyncio.gather(*(self._finish(sample, sampling, on_sample) for sample in open_samples))
        return [error for error in errors if error]

    async def abort(self, groups: Sequence[Group]) -> None:
        """Cut these groups short: their samples keep what they have and become aborted."""
        await self._engine.abort([self._id(sample) for group in groups for sample in group])

    def retries_since(self) -> int:
        """How many requests were asked again since this was last asked."""
        retried, self._retried = self._retried, 0
        return retried

    async def _finish(self, sample: Sample, sampling: Sampling, on_sample: Callable[[int], None]) -> str:
        before = len(sample.tokens)
        try:
            await self._generate(sample, sampling)
        except Exception as error:  # whatever an engine raises concerns this request alone
            sample.status = Status.FAILED
            return f"{self._id(sample)}: {error or type(error).__name__}"
        self._write_text(sample, sampling)
        on_sample(len(sample.tokens) - before)
        return ""

    async def _generate(self, sample: Sample, sampling: Sampling) -> None:
        """Ask until the response has ended, or was cut short on request; raise what the last attempt raised.

        While an engine needs weights it is not asked: what has been lost may come back.
        """
        for retry in count():
            while self._engine.needs_weights:
                await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._ask(sample, self._request(sample, sampling))
                break
            except RlcoreError:
                raise  # a refusal would be repeated
            except Exception:
                if retry == self._retries:
                    raise
            self._retried += 1
            await asyncio.sleep(BACKOFF_SECONDS * 2**retry)

    async def _ask(self, sample: Sample, request: Request) -> None:
        sample.status = Status.PENDING
        deltas = cast("AsyncGenerator[Delta]", self._engine.generate(request))
        async with aclosing(deltas):
            while sample.status is Status.PENDING:
                async with asyncio.timeout(self._timeout):
                    self._add(sample, await anext(deltas))

    def _request(self, sample: Sample, sampling: Sampling) -> Request:
        limit = sampling.max_response_tokens
        if self._max_context_tokens:
            limit = min(limit, self._max_context_tokens - len(sample.prompt_tokens))
        if limit < 1:
            raise fail("rollout.max_context_tokens", f"the prompt alone has {len(sample.prompt_tokens)} tokens")
        params = SamplingParams(
            max_new_tokens=limit,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=tuple(sampling.stop),
            stop_token_ids=(*self._stop_token_ids, *sampling.stop_token_ids),
        )
        return Request(
            self._id(sample),
            sample.prompt_tokens,
            params,
            seed=self._seed,
            key=(sample.group, sample.index),
            tokens=tuple(sample.tokens),
            stream=self._timeout is not None,
        )

    def _id(self, sample: Sample) -> str:
        """A sample's name at the engine."""
        return f"{self._name}prompt {sample.group}, sample {sample.index}"

    def _add(self, sample: Sample, delta: Delta) -> None:
        sample.tokens += delta.tokens
        sample.log_probs += delta.log_probs
        sample.versions += delta.versions
        sample.selections += delta.selections
        sample.loss_mask += [1] * len(delta.tokens)
        if delta.finish:
            sample.status = STATUS[delta.finish]

    def _write_text(self, sample: Sample, sampling: Sampling) -> None:
        """Set `response`: the text without the token that ended it."""
        ends = sample.tokens and sample.tokens[-1] in (*self._stop_token_ids, *sampling.stop_token_ids)
        sample.response = self._tokenizer.decode(sample.tokens[:-1] if ends else sample.tokens)


def mask_older(groups: Iterable[Group], version: int) -> None:
    """Give tokens no loss that weights of another version made."""
    for sample in (sample for group in groups for sample in group):
        made_by = zip(sample.loss_mask, sample.versions, strict=True)
        sample.loss_mask = [int(mask and made == version) for mask, made in made_by]
