"""Turns samples into responses: one request a sample, resumed where an earlier rollout cut it short.

A sample whose request fails is marked and explained; it never takes the others down with it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rlcore.config.generation import Sampling
from rlcore.data.sample import Sample, Status
from rlcore.errors import fail
from rlcore.rollout.engine import Delta, Engine, Request, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Group = list[Sample]
OnProgress = Callable[[int, int, int], None]

STATUS = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}
UNFINISHED = (Status.PENDING, Status.ABORTED)


class Responder:
    """Asks an engine for the responses of whole groups.

    `stop_token_ids` are the model's own; `seed` names the run's randomness, of which every sample has its
    share by group and index. `max_context_tokens` bounds prompt and response together. With
    `mask_offpolicy`, tokens that other weights made than the engine's present ones get no loss.
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
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stop_token_ids = tuple(stop_token_ids)
        self._seed = seed
        self._max_context_tokens = max_context_tokens
        self._mask_offpolicy = mask_offpolicy

    async def respond(self, group: Group, sampling: Sampling, on_sample: Callable[[int], None]) -> list[str]:
        """Finish every sample of a group, in place; returns what went wrong, one line a failed sample.

        `on_sample` is told the number of new tokens as each sample ends.
        """
        if self._mask_offpolicy:
            self._mask_old(group)
        open_samples = [sample for sample in group if sample.status in UNFINISHED]
        errors = await asyncio.gather(*(self._finish(sample, sampling, on_sample) for sample in open_samples))
        return [error for error in errors if error]

    async def abort(self, groups: Sequence[Group]) -> None:
        """Cut these groups short: their samples keep what they have and become aborted."""
        await self._engine.abort([request_id(sample) for group in groups for sample in group])

    async def _finish(self, sample: Sample, sampling: Sampling, on_sample: Callable[[int], None]) -> str:
        before = len(sample.tokens)
        try:
            async for delta in self._engine.generate(self._request(sample, sampling)):
                self._add(sample, delta)
        except Exception as error:  # whatever an engine raises concerns this request alone
            sample.status = Status.FAILED
            return f"{request_id(sample)}: {error}"
        self._write_text(sample, sampling)
        on_sample(len(sample.tokens) - before)
        return ""

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
            request_id(sample),
            sample.prompt_tokens,
            params,
            seed=self._seed,
            key=(sample.group, sample.index),
            tokens=tuple(sample.tokens),
        )

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

    def _mask_old(self, group: Group) -> None:
        for sample in group:
            fresh = [version == self._engine.version for version in sample.versions]
            sample.loss_mask = [int(m and f) for m, f in zip(sample.loss_mask, fresh, strict=True)]


def request_id(sample: Sample) -> str:
    """A sample's name at the engine."""
    return f"prompt {sample.group}, sample {sample.index}"
