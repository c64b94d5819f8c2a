import asyncio
from dataclasses import replace

import pytest
import torch
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec

from rlcore.config.schema import Model, Optimizer
from rlcore.data.train_sample import TrainSample
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.engine import Request, SamplingParams
from rlcore.rollout.local import LocalEngine
from rlcore.testing.agreement import sample_responses, send_weights
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer

REQUESTS = 24


@pytest.fixture
def folder(make_checkpoint):
    return make_checkpoint(num_nextn_predict_layers=1)


@pytest.fixture
def spec(folder):
    return dsa_spec(read_hf_config(folder))


@pytest.fixture
def engine(folder, spec):
    """With fewer slots than requests, so that rows come, go, and move."""
    mend, serve = spec.mend_transformers, spec.serve_transformers
    return LocalEngine(folder, concurrency=7, mend=mend, serve=serve)


@pytest.fixture
def trainer(megatron, folder, spec):
    trainer = Trainer(spec, dsa_bridge(spec), folder, model=Model(checkpoint=str(folder), dtype="float32"))
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=3)
    return trainer


def assert_agreement(metrics):
    """A near-tie may fall otherwise on another processor; then one token of many differs, and is seen."""
    assert metrics["logprob_gap/max"] <= 1e-5
    assert metrics["dsa/selection_flips"] <= 0.005


def test_engine_and_trainer_agree_before_and_after_training(spec, engine, trainer):
    for version in range(3):
        samples = sample_responses(engine, vocab_size=spec.vocab_size)
        assert_agreement(trainer.train_step(samples, SftObjective()))
        send_weights(trainer, engine, version=version)


def request(number, tokens=()):
    """Every prompt is asked twice; prompts and responses have many lengths, most above what a query may see."""
    prompt = torch.randint(499, (3 + number // 2 * 3,), generator=torch.Generator().manual_seed(number // 2))
    params = SamplingParams(max_new_tokens=10 + number)
    return Request(f"request {number}", prompt.tolist(), params, key=(number,), tokens=tokens)


async def answer(engine, asked):
    (delta,) = [delta async for delta in engine.generate(asked)]
    return delta


async def respond(engine, interrupt=None):
    tasks = [asyncio.create_task(answer(engine, request(number))) for number in range(REQUESTS)]
    if interrupt:
        for _ in range(9):
            await asyncio.sleep(0)
        await interrupt(engine)
    return await asyncio.gather(*tasks)


def train_sample(number, *deltas, fresh=None):
    tokens, log_probs, selections = (
        [value for delta in deltas for value in getattr(delta, name)]
        for name in ("tokens", "log_probs", "selections")
    )
    prompt = request(number).prompt_tokens
    return TrainSample(
        name=f"sample {number}",
        tokens=[*prompt, *tokens],
        prompt_length=len(prompt),
        loss_mask=[1.0] * len(tokens),
        rollout_log_probs=log_probs,
        selections=selections,
        fresh=fresh,
    )


async def retract(engine):
    await engine.pause("retract")
    await engine.resume()


async def hold(engine):
    await engine.pause("in_place")
    await engine.resume()


async def rest(engine):
    await engine.sleep()
    await engine.wake()


@pytest.mark.parametrize("interrupt", [None, retract, hold, rest])
def test_whatever_happens_to_its_rows_the_engine_agrees_with_the_trainer(engine, trainer, interrupt):
    deltas = asyncio.run(respond(engine, interrupt))
    samples = [train_sample(number, delta) for number, delta in enumerate(deltas)]
    assert_agreement(trainer.train_step(samples, SftObjective()))


def test_responses_in_two_parts_have_the_selections_of_the_whole(engine, trainer):
    async def cut_and_go_on():
        first = await respond(engine, interrupt=LocalEngine.abort)
        rest = [answer(engine, request(n, delta.tokens)) for n, delta in enumerate(first)]
        return first, await asyncio.gather(*rest)

    parts = list(zip(*asyncio.run(cut_and_go_on()), strict=True))
    assert any(first.tokens and rest.tokens for first, rest in parts)
    samples = [train_sample(number, *deltas) for number, deltas in enumerate(parts)]
    assert_agreement(trainer.train_step(samples, SftObjective()))


def test_tokens_made_after_an_update_have_the_selections_of_the_new_weights(engine, trainer):
    async def new_weights(engine):
        await engine.pause("retract")
        async with engine.weight_update(1) as update:
            await update.send(dict(trainer.exporter))
        await engine.resume()

    trainer.train_step(sample_responses(engine, vocab_size=499), SftObjective())
    deltas = asyncio.run(respond(engine, new_weights))
    assert any({0, 1} <= set(delta.versions) for delta in deltas)
    samples = [
        train_sample(number, delta, fresh=[version == 1 for version in delta.versions])
        for number, delta in enumerate(deltas)
    ]
    assert_agreement(trainer.train_step(samples, SftObjective()))


def test_without_the_mending_they_would_not_agree(folder, spec, trainer):
    engine = LocalEngine(folder, serve=spec.serve_transformers)
    samples = sample_responses(engine, vocab_size=spec.vocab_size)
    assert trainer.train_step(samples, SftObjective())["logprob_gap/max"] > 1e-5


def test_what_the_engine_selected_otherwise_is_counted_and_not_compared(spec, engine, trainer):
    first, *others = sample_responses(engine, vocab_size=spec.vocab_size)
    differing = [*first.selections[:5], *(value + 1 for value in first.selections[5:])]
    log_probs = [*first.rollout_log_probs[:5], *(value + 1 for value in first.rollout_log_probs[5:])]
    first = replace(first, selections=differing, rollout_log_probs=log_probs)
    metrics = trainer.train_step([first, *others], SftObjective())
    assert metrics["dsa/selection_flips"] >= 1 / metrics["tokens"]
    assert metrics["logprob_gap/max"] <= 1e-5
