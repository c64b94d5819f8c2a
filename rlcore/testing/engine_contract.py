"""What every rollout engine promises, as tests: subclass `EngineContract` and give the fixtures that it names.

Log-probs are compared with transformers. Waiting is for what an engine does, never for a time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file

from rlcore.errors import RlcoreError
from rlcore.rollout.engine import Delta, Engine, PauseMode, Request, SamplingParams
from rlcore.testing.tiny import tiny_checkpoint, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")
VOCABULARY, CONTEXT, END = 300, 512, 256
# Tokens that take long enough for something to happen meanwhile.
LONG = 320
# Makes an engine with the subject's own weights, at version 0.
Opens = Callable[[], AbstractAsyncContextManager[Engine]]

TOLERANCE = 1e-5


def request(name: str, prompt: Sequence[int] = (5, 6, 7), new: int = 12, **options: Any) -> Request:
    """A request; `options` go to Request or to SamplingParams, wherever they belong."""
    own = {key: options.pop(key) for key in ("seed", "key", "tokens", "stream") if key in options}
    return Request(name, list(prompt), SamplingParams(max_new_tokens=new, **options), **own)


def mixed_requests(**options: Any) -> list[Request]:
    """More requests than slots, with prompts of many lengths, some of them shared."""
    prompts = [[7], [8, 9], [8, 9], list(range(20, 50)), list(range(20, 50)), [3, 4, 5, 6], [9] * 11]
    return [
        request(f"r{i}", prompts[i % 7], new=5 + 4 * i, key=(i, 0), stop_token_ids=(256,), **options)
        for i in range(14)
    ]


@dataclass(frozen=True)
class Subject:
    """What an engine serves: a checkpoint, its model in transformers, and other weights for the same model.

    The vocabulary has 300 tokens, the first 256 of them bytes, and the context 512.
    """

    checkpoint: Path
    model: "PreTrainedModel"
    new_tensors: "Mapping[str, torch.Tensor]"
    new_model: "PreTrainedModel"

    @classmethod
    def make(cls, folder: Path, architecture: Mapping[str, Any]) -> "Subject":
        """Write both to a folder, from config.json but for vocabulary, context and end token."""
        fixed = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": [END]}
        config = {**architecture, **fixed, "pad_token_id": END}
        tiny_tokenizer(folder / "own", chat_template="", special_tokens=["<|end|>"], eos_token="<|end|>")
        model = tiny_checkpoint(folder / "own", config, jitter=0.1)
        new_model = tiny_checkpoint(folder / "new", config, seed=1, jitter=0.1)
        return cls(folder / "own", model, load_file(folder / "new" / "model.safetensors"), new_model)


class Listener:
    """Collects what a request yields; `said` grows while the engine is at work."""

    def __init__(self, engine: Engine, asked: Request) -> None:
        self.deltas: list[Delta] = []
        self.task = asyncio.create_task(self._listen(engine, asked))

    @property
    def said(self) -> Delta:
        """Everything so far, as one delta."""

        def joined(name: str) -> list[Any]:
            return [part for delta in self.deltas for part in getattr(delta, name)]

        finish = self.deltas[-1].finish if self.deltas else None
        return Delta(joined("tokens"), joined("log_probs"), joined("versions"), finish)

    async def until(self, tokens: int) -> None:
        """Wait for so many tokens of a stream."""
        while sum(len(delta.tokens) for delta in self.deltas) < tokens and not self.task.done():
            await asyncio.sleep(0.001)

    async def end(self) -> Delta:
        await self.task
        return self.said

    async def _listen(self, engine: Engine, asked: Request) -> None:
        async for delta in engine.generate(asked):
            self.deltas.append(delta)


async def answer(engine: Engine, asked: Request) -> Delta:
    """Everything that a request yields, as one delta."""
    return await Listener(engine, asked).end()


async def answers(engine: Engine, asked: Sequence[Request]) -> list[Delta]:
    return await asyncio.gather(*(answer(engine, one) for one in asked))


def log_probs(model: torch.nn.Module, asked: Request, tokens: Sequence[int], start: int = 0) -> list[float]:
    """Log-probs of response tokens from `start` on, by one full forward of transformers."""
    context = [*asked.prompt_tokens, *asked.tokens, *tokens]
    with torch.no_grad():
        table = (model(torch.tensor([context])).logits[0] / (asked.params.temperature or 1)).log_softmax(-1)
    first = len(context) - len(tokens)
    return [table[first + i - 1, token].item() for i, token in enumerate(tokens) if i >= start]


class EngineContract:
    """Its fixtures are `subject`, and `opens`, which opens an engine on it (see `Opens`)."""

    def run(self, opens: Opens, scene: Callable[[Engine], Awaitable[Result]]) -> Result:
        """Play a scene with a fresh engine."""

        async def play() -> Result:
            async with opens() as engine:
                return await scene(engine)

        return asyncio.run(play())

    @pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
    def test_log_probs_are_those_of_a_full_forward(
        self, opens: Opens, subject: Subject, temperature: float
    ) -> None:
        asked = mixed_requests(temperature=temperature)
        found = self.run(opens, lambda engine: answers(engine, asked))
        for one, got in zip(asked, found, strict=True):
            assert got.log_probs == pytest.approx(log_probs(subject.model, one, got.tokens), abs=TOLERANCE)
            assert set(got.versions) == {0}

    def test_a_response_is_as_long_as_it_may_be_unless_it_stops(self, opens: Opens) -> None:
        asked = mixed_requests()
        for one, got in zip(asked, self.run(opens, lambda engine: answers(engine, asked)), strict=True):
            assert got.finish == ("stop" if got.tokens[-1] == 256 else "length")
            assert len(got.tokens) == one.params.max_new_tokens or got.finish == "stop"

    def test_greedy_takes_the_likeliest_token(self, opens: Opens, subject: Subject) -> None:
        got = self.run(opens, lambda engine: answer(engine, request("a", temperature=0.0)))
        with torch.no_grad():
            logits = subject.model(torch.tensor([[5, 6, 7, *got.tokens]])).logits[0]
        assert got.tokens == logits.argmax(-1)[2:-1].tolist()

    def test_a_stream_yields_tokens_as_they_are_made(self, opens: Opens) -> None:
        async def listen(engine: Engine) -> list[Delta]:
            listener = Listener(engine, request("a", new=40, stream=True))
            await listener.task
            return listener.deltas

        deltas = self.run(opens, listen)
        assert len(deltas) > 5
        assert sum(len(delta.tokens) for delta in deltas) == 40
        assert [delta.finish for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]

    def test_a_stop_string_ends_after_the_token_that_completes_it(self, opens: Opens) -> None:
        def asked(name: str, **options: Any) -> Request:
            return request(name, [65, 66], new=60, temperature=0.0, **options)

        async def compare(engine: Engine) -> tuple[Delta, Delta, str]:
            free = await answer(engine, asked("free"))
            byte = next(token for token in free.tokens[3:] if 33 <= token + 33 < 127)
            word = chr(byte + 33)
            return free, await answer(engine, asked("stopped", stop=(word,))), word

        free, stopped, word = self.run(opens, compare)
        end = free.tokens.index(ord(word) - 33) + 1
        assert (stopped.finish, stopped.tokens) == ("stop", free.tokens[:end])

    def test_an_abort_keeps_what_was_made_and_the_rest_can_be_made_later(
        self, opens: Opens, subject: Subject
    ) -> None:
        def asked(**options: Any) -> Request:
            return request("a", new=LONG, temperature=0.0, **options)

        async def cut(engine: Engine) -> tuple[Delta, Delta, Delta]:
            listener = Listener(engine, asked(stream=True))
            await listener.until(12)
            await engine.abort()
            part = await listener.end()
            return part, await answer(engine, asked(tokens=part.tokens)), await answer(engine, asked())

        part, rest, whole = self.run(opens, cut)
        assert part.finish == "abort"
        assert 12 <= len(part.tokens) < LONG
        assert [*part.tokens, *rest.tokens] == whole.tokens
        assert [*part.log_probs, *rest.log_probs] == pytest.approx(
            log_probs(subject.model, asked(), whole.tokens), abs=TOLERANCE
        )

    def test_an_abort_ends_those_that_it_names_only(self, opens: Opens) -> None:
        async def cut(engine: Engine) -> list[Delta]:
            listeners = [Listener(engine, request(name, new=LONG, stream=True)) for name in ("a", "a1")]
            await listeners[1].until(5)
            await engine.abort(["a"])
            return [await listener.end() for listener in listeners]

        first, second = self.run(opens, cut)
        assert (first.finish, second.finish) == ("abort", "length")
        assert len(first.tokens) < len(second.tokens) == LONG

    def test_a_queued_request_ends_empty_when_it_is_aborted(self, opens: Opens) -> None:
        async def cut(engine: Engine) -> list[Delta]:
            first = Listener(engine, request("first", new=LONG, stream=True))
            crowd = [Listener(engine, request(f"q{i}", new=LONG, key=(i, 0))) for i in range(100)]
            await first.until(5)
            await engine.abort()
            return [await listener.end() for listener in (first, *crowd)]

        found = self.run(opens, cut)
        assert {got.finish for got in found} == {"abort"}
        assert min(len(got.tokens) for got in found) == 0

    @pytest.mark.parametrize("mode", ["retract", "in_place"])
    def test_a_paused_request_goes_on_where_it_was(self, opens: Opens, mode: PauseMode) -> None:
        asked = request("a", new=LONG, temperature=0.0, stream=True)

        async def interrupt(engine: Engine) -> tuple[Delta, Delta]:
            listener = Listener(engine, asked)
            await listener.until(12)
            await engine.pause(mode)
            await settled(listener)
            assert not listener.task.done()
            await engine.resume()
            return await listener.end(), await answer(engine, asked)

        got, whole = self.run(opens, interrupt)
        assert got.tokens == whole.tokens
        assert got.log_probs == pytest.approx(whole.log_probs, abs=TOLERANCE)

    def test_a_pause_may_abort_everything(self, opens: Opens) -> None:
        async def hold(engine: Engine) -> tuple[Delta, Delta]:
            listener = Listener(engine, request("a", new=LONG, stream=True))
            await listener.until(5)
            await engine.pause("abort")
            part = await listener.end()
            await engine.resume()
            return part, await answer(engine, request("b"))

        part, later = self.run(opens, hold)
        assert (part.finish, later.finish) == ("abort", "length")

    def test_after_a_weight_update_answers_are_the_new_models(self, opens: Opens, subject: Subject) -> None:
        asked = mixed_requests()

        async def renew(engine: Engine) -> list[Delta]:
            await answers(engine, asked)
            await send(engine, 7, subject.new_tensors)
            assert engine.version == (await engine.health()).version == 7
            return await answers(engine, asked)

        for one, got in zip(asked, self.run(opens, renew), strict=True):
            assert got.log_probs == pytest.approx(log_probs(subject.new_model, one, got.tokens), abs=TOLERANCE)
            assert set(got.versions) == {7}

    def test_every_token_knows_its_weights_and_retracted_requests_are_computed_anew(
        self,
        opens: Opens,
        subject: Subject,
    ) -> None:
        asked = request("a", new=LONG)

        async def renew(engine: Engine) -> Delta:
            listener = Listener(engine, asked)
            clock = Listener(engine, request("clock", new=LONG, stream=True))
            await clock.until(10)
            await engine.pause("retract")
            await send(engine, 1, subject.new_tensors)
            await engine.resume()
            return await listener.end()

        got = self.run(opens, renew)
        turn = got.versions.index(1)
        assert got.versions == [0] * turn + [1] * (LONG - turn)
        old = log_probs(subject.model, asked, got.tokens)[:turn]
        new = log_probs(subject.new_model, asked, got.tokens, turn)
        assert got.log_probs == pytest.approx([*old, *new], abs=TOLERANCE)

    def test_requests_that_come_after_an_update_share_no_older_prefix(
        self, opens: Opens, subject: Subject
    ) -> None:
        later = request("b", range(40), new=8)

        async def renew(engine: Engine) -> Delta:
            first = Listener(engine, request("a", range(40), new=LONG, stream=True))
            await first.until(6)
            await send(engine, 1, subject.new_tensors)
            got = await answer(engine, later)
            await first.end()
            return got

        got = self.run(opens, renew)
        assert got.log_probs == pytest.approx(log_probs(subject.new_model, later, got.tokens), abs=TOLERANCE)

    def test_an_update_that_fails_before_anything_was_sent_changes_nothing(
        self, opens: Opens, subject: Subject
    ) -> None:
        async def fail(engine: Engine) -> Delta:
            with pytest.raises(ConnectionError):
                async with engine.weight_update(5):
                    raise ConnectionError
            assert engine.version == 0
            return await answer(engine, request("a"))

        got = self.run(opens, fail)
        assert got.log_probs == pytest.approx(log_probs(subject.model, request("a"), got.tokens), abs=TOLERANCE)

    def test_flush_drops_what_nobody_needs(self, opens: Opens, subject: Subject) -> None:
        async def flush(engine: Engine) -> Delta:
            first = Listener(engine, request("a", range(40), new=LONG, stream=True))
            await first.until(5)
            await engine.flush()
            await engine.abort()
            await first.end()
            await engine.flush()
            return await answer(engine, request("b", range(40)))

        got = self.run(opens, flush)
        expected = log_probs(subject.model, request("b", range(40)), got.tokens)
        assert got.log_probs == pytest.approx(expected, abs=TOLERANCE)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (request("long", [1] * 300, new=300), "512"),
            (request("empty", []), "the prompt is empty"),
            (request("alien", [300]), "token 300 is outside the vocabulary of 300"),
        ],
    )
    def test_a_request_that_cannot_be_served_says_why(self, opens: Opens, asked: Request, message: str) -> None:
        with pytest.raises(RlcoreError, match=message):
            self.run(opens, lambda engine: answer(engine, asked))

    def test_a_request_that_is_finished_already_takes_nothing(self, opens: Opens) -> None:
        asked = [
            request("full", new=3, tokens=(1, 2, 3)),
            request("stopped", tokens=(1, 256), stop_token_ids=(256,)),
        ]
        full, stopped = self.run(opens, lambda engine: answers(engine, asked))
        assert (full.tokens, full.finish) == ([], "length")
        assert (stopped.tokens, stopped.finish) == ([], "stop")


async def send(engine: Engine, version: int, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Update an engine's weights in two buckets."""
    names = list(tensors)
    async with engine.weight_update(version) as update:
        for half in (names[::2], names[1::2]):
            await update.send({name: tensors[name] for name in half})


async def settled(listener: Listener) -> None:
    """Wait until a paused request has nothing more to say."""
    before = -1
    while len(listener.said.tokens) != before:
        before = len(listener.said.tokens)
        for _ in range(50):
            await asyncio.sleep(0.002)
