"""What becomes of requests that an engine loses. The engine is the local one, behind a line that breaks."""

import asyncio
from contextlib import aclosing

import pytest

from rlcore.config.generation import Sampling
from rlcore.data.sample import Sample, Status
from rlcore.rollout import responses
from rlcore.rollout.responses import Responder, mask_older

SAMPLING = Sampling(max_response_tokens=12)


class Breaking:
    """Hands on what the engine makes until so many tokens are through, then breaks or hangs, `times` times."""

    def __init__(self, engine, after, times, hangs=False):
        self.engine, self.after, self.times, self.hangs = engine, after, times, hangs
        self.asked_with = []
        self.version = 0
        self.needs_weights = False

    async def generate(self, request):
        self.asked_with.append(len(request.tokens))
        through = 0
        async with aclosing(self.engine.generate(request)) as deltas:
            async for delta in deltas:
                yield delta
                through += len(delta.tokens)
                if self.times and through >= self.after:
                    self.times -= 1
                    if self.hangs:
                        await asyncio.Event().wait()
                    raise ConnectionResetError("the line broke")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(responses, "BACKOFF_SECONDS", 0.0)


def respond(engine, tokenizer, *, timeout=30.0, retries=2, prompt=(70, 71)):
    responder = Responder(
        engine, tokenizer, stop_token_ids=[256], seed=3, timeout=timeout, retries=retries, name="test, "
    )
    sample = Sample("", prompt_tokens=list(prompt))
    errors = asyncio.run(responder.respond([sample], SAMPLING, lambda tokens: None))
    return sample, errors, responder.retries_since()


@pytest.fixture
def whole(engine):
    """The response over a line that holds."""
    return respond(engine, engine._tokenizer)[0]


@pytest.mark.parametrize("hangs", [False, True], ids=["broken", "hanging"])
def test_a_lost_request_is_asked_again_after_the_tokens_that_it_has(engine, whole, hangs):
    line = Breaking(engine, after=4, times=2, hangs=hangs)
    sample, errors, retries = respond(line, engine._tokenizer, timeout=2.5 if hangs else 30.0)
    assert (errors, retries, line.asked_with) == ([], 2, [0, 4, 8])
    assert sample.to_dict() == whole.to_dict() | {"log_probs": pytest.approx(whole.log_probs, abs=1e-5)}


def test_a_request_that_is_lost_too_often_fails_its_sample_with_the_last_cause(engine):
    line = Breaking(engine, after=1, times=9)
    sample, errors, _ = respond(line, engine._tokenizer)
    assert len(line.asked_with) == 3
    assert sample.status is Status.FAILED
    assert errors == ["test, prompt 0, sample 0: the line broke"]


def test_what_an_engine_refuses_is_not_asked_again(engine):
    line = Breaking(engine, after=1, times=0)
    sample, errors, _ = respond(line, engine._tokenizer, prompt=[5000])
    assert (sample.status, line.asked_with) == (Status.FAILED, [0])
    assert "outside the vocabulary" in errors[0]


def test_tokens_of_other_weights_lose_their_loss():
    sample = Sample("", loss_mask=[1, 0, 1], versions=[2, 3, 3])
    mask_older([[sample]], 3)
    assert sample.loss_mask == [0, 0, 1]
