import asyncio
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlcore.errors import RlcoreError
from rlcore.rollout.engine import Delta, Request, SamplingParams
from rlcore.rollout.local import LocalEngine
from rlcore.testing.tiny import tiny_checkpoint, tiny_mtp_layer


def request(name: str, prompt: Sequence[int] = (5, 6, 7), new: int = 12, **options: object) -> Request:
    """A request; `options` go to Request or to SamplingParams, wherever they belong."""
    own = {key: options.pop(key) for key in ("seed", "key", "tokens", "stream") if key in options}
    return Request(name, list(prompt), SamplingParams(max_new_tokens=new, **options), **own)


async def answer(engine: LocalEngine, asked: Request) -> Delta:
    """Everything that a request yields, as one delta."""
    deltas = [delta async for delta in engine.generate(asked)]
    parts = (
        [part for delta in deltas for part in getattr(delta, name)]
        for name in ("tokens", "log_probs", "versions")
    )
    return Delta(*parts, deltas[-1].finish)


def answers(engine: LocalEngine, asked: Sequence[Request]) -> list[Delta]:
    async def together() -> list[Delta]:
        return await asyncio.gather(*(answer(engine, one) for one in asked))

    return asyncio.run(together())


def log_probs(model: torch.nn.Module, asked: Request, tokens: Sequence[int], start: int = 0) -> list[float]:
    """Log-probs of response tokens from `start` on, by one full forward of transformers."""
    context = [*asked.prompt_tokens, *asked.tokens, *tokens]
    with torch.no_grad():
        table = (model(torch.tensor([context])).logits[0] / (asked.params.temperature or 1)).log_softmax(-1)
    first = len(context) - len(tokens)
    return [table[first + i - 1, token].item() for i, token in enumerate(tokens) if i >= start]


def mixed_requests(**options):
    """More requests than slots, with prompts of many lengths, some of them shared."""
    prompts = [[7], [8, 9], [8, 9], list(range(20, 50)), list(range(20, 50)), [3, 4, 5, 6], [9] * 11]
    return [
        request(f"r{i}", prompts[i % 7], new=5 + 4 * i, key=(i, 0), stop_token_ids=(256,), **options)
        for i in range(14)
    ]


async def perturb(engine, version, model):
    """Send the engine weights that differ from its own, and give transformers the same."""
    torch.manual_seed(version)
    weights = {name: w + 0.05 * torch.randn_like(w) for name, w in model.state_dict().items()}
    model.load_state_dict(weights)
    async with engine.weight_update(version) as update:
        for name, tensor in weights.items():
            await update.send({name: tensor})


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_log_probs_are_those_of_a_full_forward(engine, reference, temperature):
    asked = mixed_requests(temperature=temperature)
    for one, got in zip(asked, answers(engine, asked), strict=True):
        assert got.log_probs == pytest.approx(log_probs(reference, one, got.tokens), abs=1e-5)


def test_a_response_is_as_long_as_it_may_be_unless_it_stops(engine):
    for one, got in zip(mixed_requests(), answers(engine, mixed_requests()), strict=True):
        assert got.finish == ("stop" if got.tokens[-1] == 256 else "length")
        assert len(got.tokens) == one.params.max_new_tokens or got.finish == "stop"


def test_the_same_requests_give_the_same_answers(checkpoint):
    first, second = (answers(LocalEngine(checkpoint, concurrency=4), mixed_requests()) for _ in range(2))
    assert first == second


def test_a_draw_depends_on_seed_key_and_position_but_not_on_company(engine):
    alone = answers(engine, [request("a", key=(1, 2), seed=3)])[0]
    company = [request("b", key=(1, 1)), request("a", key=(1, 2), seed=3), request("c", [9, 9], key=(4, 4))]
    assert answers(engine, company)[1].tokens == alone.tokens
    others = answers(engine, [request("d", key=(1, 2), seed=4), request("e", key=(2, 1), seed=3)])
    assert all(other.tokens != alone.tokens for other in others)


def test_samples_follow_the_models_distribution(engine, reference):
    asked = [request(str(i), new=1, key=(0, i), temperature=0.7) for i in range(1500)]
    counts = torch.bincount(torch.tensor([got.tokens[0] for got in answers(engine, asked)]), minlength=300)
    with torch.no_grad():
        expected = (reference(torch.tensor([[5, 6, 7]])).logits[0, -1] / 0.7).softmax(-1) * 1500
    likely = expected > 20
    spread = (counts - expected)[likely] / expected[likely].sqrt()
    assert spread.abs().max() < 4.5


def test_greedy_takes_the_likeliest_token(engine, reference):
    got = answers(engine, [request("a", temperature=0)])[0]
    with torch.no_grad():
        full = reference(torch.tensor([[5, 6, 7, *got.tokens]])).logits[0]
    assert got.tokens == full.argmax(-1)[2:-1].tolist()


def test_requests_with_different_knobs_share_a_batch(engine, reference):
    asked = [request("a", temperature=0), request("b", top_k=3), request("c"), request("d", top_p=0.5)]
    together = answers(engine, asked)
    assert [got.tokens for got in together] == [answers(engine, [one])[0].tokens for one in asked]


def test_top_k_draws_and_renormalises_among_the_likeliest(engine, reference):
    asked = request("a", new=30, top_k=2)
    got = answers(engine, [asked])[0]
    with torch.no_grad():
        table = reference(torch.tensor([[5, 6, 7, *got.tokens]])).logits[0, 2:-1]
    kept = table.topk(2)
    for place, (token, log_prob) in enumerate(zip(got.tokens, got.log_probs, strict=True)):
        choice = kept.indices[place].tolist().index(token)
        assert log_prob == pytest.approx(kept.values[place].log_softmax(-1)[choice].item(), abs=1e-5)


def test_a_stop_string_ends_after_the_token_that_completes_it(engine):
    free = answers(engine, [request("a", [65, 66], new=60)])[0]
    texts = [engine._tokenizer.decode([token]) for token in free.tokens]
    place = next(i for i in range(5, 60) if all(text.isascii() for text in texts[i : i + 2]))
    word = "".join(texts[place : place + 2])
    got = answers(engine, [request("a", [65, 66], new=60, stop=(word,))])[0]
    assert got.finish == "stop"
    assert engine._tokenizer.decode(got.tokens).endswith(word)
    assert got.tokens == free.tokens[: len(got.tokens)]


def test_a_stream_yields_tokens_as_they_are_made(engine):
    async def collect():
        return [delta async for delta in engine.generate(request("a", new=5, stream=True))]

    deltas = asyncio.run(collect())
    assert [len(delta.tokens) for delta in deltas] == [1] * 5
    assert [delta.finish for delta in deltas] == [None] * 4 + ["length"]


def test_an_abort_keeps_what_was_made_and_the_rest_can_be_made_later(engine, reference):
    whole = answers(engine, [request("a", new=40, key=(1, 1))])[0]

    async def cut():
        task = asyncio.create_task(answer(engine, request("a", new=40, key=(1, 1))))
        queued = [asyncio.create_task(answer(engine, request(f"q{i}", new=40))) for i in range(5)]
        for _ in range(12):
            await asyncio.sleep(0)
        await engine.abort()
        return await task, await queued[-1]

    part, queued = asyncio.run(cut())
    assert part.finish == queued.finish == "abort"
    assert 0 < len(part.tokens) < 40
    assert queued.tokens == []
    rest = answers(engine, [request("a", new=40, key=(1, 1), tokens=part.tokens)])[0]
    assert [*part.tokens, *rest.tokens] == whole.tokens
    assert [*part.log_probs, *rest.log_probs] == pytest.approx(whole.log_probs, abs=1e-5)


def test_leaving_a_request_frees_its_place(engine):
    async def leave():
        with suppress(TimeoutError):
            await asyncio.wait_for(answer(engine, request("a", new=200)), 0.01)
        return await engine.health()

    health = asyncio.run(leave())
    assert (health.running, health.queued) == (0, 0)


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_paused_request_goes_on_where_it_was(engine, mode):
    whole = answers(engine, [request("a", new=40)])[0]

    async def interrupted():
        task = asyncio.create_task(answer(engine, request("a", new=40)))
        for _ in range(12):
            await asyncio.sleep(0)
        await engine.pause(mode)
        running = (await engine.health()).running
        for _ in range(12):
            await asyncio.sleep(0)
        assert not task.done()
        await engine.resume()
        return running, await task

    running, got = asyncio.run(interrupted())
    assert running == (mode == "in_place")
    assert got.tokens == whole.tokens
    assert got.log_probs == pytest.approx(whole.log_probs, abs=1e-5)


def test_after_a_weight_update_answers_are_the_new_models(engine, reference):
    answers(engine, mixed_requests())
    asyncio.run(perturb(engine, 7, reference))
    for one, got in zip(mixed_requests(), answers(engine, mixed_requests()), strict=True):
        assert got.log_probs == pytest.approx(log_probs(reference, one, got.tokens), abs=1e-5)
        assert set(got.versions) == {7}


def test_an_update_between_pause_and_resume_recomputes_what_was_cached(engine, checkpoint, reference):
    old = AutoModelForCausalLM.from_pretrained(checkpoint).eval()

    async def updated():
        task = asyncio.create_task(answer(engine, request("a", new=30)))
        for _ in range(12):
            await asyncio.sleep(0)
        await engine.pause("retract")
        await perturb(engine, 1, reference)
        await engine.resume()
        return await task

    got = asyncio.run(updated())
    turn = got.versions.index(1)
    assert got.versions == [0] * turn + [1] * (30 - turn)
    expected = log_probs(old, request("a"), got.tokens)[:turn]
    assert got.log_probs == pytest.approx(
        [*expected, *log_probs(reference, request("a"), got.tokens, turn)], abs=1e-5
    )


def test_requests_that_come_after_an_update_share_no_older_prefix(engine, reference):
    async def across():
        prompt = list(range(40))
        first = asyncio.create_task(answer(engine, request("a", prompt, new=30)))
        for _ in range(6):
            await asyncio.sleep(0)
        await perturb(engine, 1, reference)
        second = await answer(engine, request("b", prompt, new=8))
        await first
        return second

    got = asyncio.run(across())
    expected = log_probs(reference, request("b", range(40)), got.tokens)
    assert got.log_probs == pytest.approx(expected, abs=1e-5)


def test_a_failed_update_leaves_the_old_weights(engine, reference):
    async def fail_halfway():
        async with engine.weight_update(5) as update:
            await update.send({"model.norm.weight": torch.zeros(32)})
            raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(fail_halfway())
    got = answers(engine, [request("a")])[0]
    assert engine.version == 0
    assert got.log_probs == pytest.approx(log_probs(reference, request("a"), got.tokens), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.nothing", (2,), "no such weight"),
        ("model.norm.weight", (5,), r"shape \(5,\), the model's is \(32,\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(engine, name, shape, message):
    async def send():
        async with engine.weight_update(1) as update:
            await update.send({name: torch.zeros(shape)})

    with pytest.raises(RlcoreError, match=message):
        asyncio.run(send())


def test_tensors_that_transformers_does_not_run_are_passed_over(checkpoint, tmp_path):
    drafting = tmp_path / "drafting"
    shutil.copytree(checkpoint, drafting)
    config = json.loads((drafting / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (drafting / "config.json").write_text(json.dumps(config))
    tiny_mtp_layer(drafting)
    engine = LocalEngine(drafting)

    async def send():
        async with engine.weight_update(1) as update:
            await update.send({"model.layers.2.eh_proj.weight": torch.zeros(32, 64)})

    asyncio.run(send())
    assert engine.version == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            request("long", [1] * 200, new=100),
            "200 prompt tokens and up to 100 new ones exceed",
        ),
        (request("empty", []), "the prompt is empty"),
        (request("alien", [300]), "token 300 is outside the vocabulary of 300"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(engine, asked, message):
    with pytest.raises(RlcoreError, match=message):
        answers(engine, [asked])


def test_values_of_the_configuration_can_be_overridden(checkpoint):
    engine = LocalEngine(checkpoint, overrides={"max_position_embeddings": 20})
    assert answers(engine, [request("short", new=10)])[0].finish == "length"
    with pytest.raises(RlcoreError, match="exceed the model's 20 positions"):
        answers(engine, [request("long", new=18)])


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(RlcoreError, match="transformers cannot load it"):
        LocalEngine(tmp_path)


def test_the_callers_threads_are_left_as_they_were(engine):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        answers(engine, mixed_requests())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_weights_that_are_not_numbers_are_told(engine):
    async def poison():
        async with engine.weight_update(3) as update:
            await update.send({"model.norm.weight": torch.full((32,), float("nan"))})

    asyncio.run(poison())
    with pytest.raises(RlcoreError, match="version 3 give logits that are not finite"):
        answers(engine, [request("a")])


def test_sleep_gives_memory_back_and_loses_nothing(engine):
    whole = answers(engine, [request("a", new=40)])[0]

    async def nap():
        task = asyncio.create_task(answer(engine, request("a", new=40)))
        for _ in range(12):
            await asyncio.sleep(0)
        await engine.sleep()
        held = engine._batch._cache.rows
        await engine.wake()
        return held, await task

    held, got = asyncio.run(nap())
    assert held == 0
    assert got.tokens == whole.tokens


def test_flush_drops_what_nobody_needs(engine):
    answers(engine, mixed_requests())
    asyncio.run(engine.flush())
    assert engine._batch._cache.rows == 0
    assert answers(engine, [request("a")])


@pytest.mark.parametrize("experts", ["glm4_moe"])
def test_experts_arrive_in_hub_names(tmp_path, experts):

    shape = {
        "model_type": "glm4_moe",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "pad_token_id": 0,
    }
    tiny_checkpoint(tmp_path / "old", shape, seed=0)
    reference = tiny_checkpoint(tmp_path / "new", shape, seed=1)
    engine = LocalEngine(tmp_path / "old", concurrency=4)

    async def update():
        async with engine.weight_update(1) as open_update:
            await open_update.send(load_file(tmp_path / "new" / "model.safetensors"))

    asyncio.run(update())
    got = answers(engine, [request("a", new=20)])[0]
    assert got.log_probs == pytest.approx(log_probs(reference, request("a"), got.tokens), abs=1e-5)
