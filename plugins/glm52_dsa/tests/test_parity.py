import random
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from rlcore_glm52_dsa.attention import SparseLatentAttention
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.margins import selection_margins
from rlcore_glm52_dsa.spec import dsa_spec
from transformers import AutoModelForCausalLM

from rlcore.bridge.load import load_hf
from rlcore.models.attention import PackedSequences
from rlcore.models.forward import forward_hidden
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.reference import PACKED, gradients_of_both, packed_and_alone
from rlcore.testing.routers import choice_margins
from rlcore.trainer.parity import measure_parity

# Further apart than rounding brings the scores of the last one chosen and the first one left out.
SMALLEST_MARGIN = 1e-6


def random_shape(seed):
    draw = random.Random(seed)
    layers = draw.choice([2, 3, 4, 5])
    heads = draw.choice([1, 2, 3, 4, 5])
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw.choice([16, 40, 96]),
        "kv_lora_rank": draw.choice([16, 24, 64]),
        "qk_nope_head_dim": draw.choice([8, 16, 24]),
        "qk_rope_head_dim": draw.choice([4, 8, 16]),
        "v_head_dim": draw.choice([8, 16, 40]),
        "hidden_size": draw.choice([32, 64, 96, 160]),
        "intermediate_size": draw.choice([48, 128, 200]),
        "moe_intermediate_size": draw.choice([16, 24, 40]),
        "num_hidden_layers": layers,
        "first_k_dense_replace": draw.choice([0, 1, 3]),
        "n_routed_experts": draw.choice([4, 8, 12, 16]),
        "num_experts_per_tok": draw.choice([2, 3, 4]),
        "n_shared_experts": draw.choice([1, 1, 2]),
        "routed_scaling_factor": draw.choice([1.0, 1.8, 2.5]),
        "vocab_size": draw.choice([499, 512, 1023]),
        "rms_norm_eps": draw.choice([1e-5, 1e-6]),
        "rope_theta": draw.choice([1e4, 1e6]),
        "tie_word_embeddings": draw.random() < 0.25,
        "index_n_heads": draw.choice([16, 24, 32]),
        "index_head_dim": draw.choice([16, 24, 32]),
        "index_topk": draw.choice([4, 16, 24, 48, 77, 128]),
        **draw.choice(
            [
                {"index_topk_freq": 1},
                {"index_topk_freq": draw.choice([2, 3, 4]), "index_skip_topk_offset": draw.choice([1, 2, 3])},
                {"indexer_types": ["full", *draw.choices(["full", "shared"], k=layers - 1)]},
            ]
        ),
    }


@contextmanager
def margins():
    """Nothing that is compared inside the context may hang on a near-tie."""
    with choice_margins() as experts, selection_margins() as keys:
        yield
    assert min([*experts, *keys], default=1.0) > SMALLEST_MARGIN


def assert_parity(folder):
    spec = dsa_spec(read_hf_config(folder))
    with margins():
        parity = measure_parity(spec, dsa_bridge(spec), folder)
    assert parity.max_rel_logit_diff <= 3e-6
    assert parity.max_rel_logit_diff <= 2 * parity.reference_noise


@pytest.mark.parametrize("seed", range(24))
def test_logits_of_random_shapes_equal_those_of_transformers(megatron, make_checkpoint, seed):
    assert_parity(make_checkpoint(seed, **random_shape(seed)))


SCHEDULES = {
    "all full": {"index_topk_freq": 1},
    "every third from the second on": {"index_topk_freq": 3},
    "every fourth from the third on, as published": {"index_topk_freq": 4, "index_skip_topk_offset": 3},
    "every second": {"index_topk_freq": 2, "index_skip_topk_offset": 1},
    "a pattern": {"index_topk_pattern": "FSSFFSS"},
    "named one by one": {"indexer_types": ["full", "shared", "full", "shared", "shared", "full", "shared"]},
}


@pytest.mark.parametrize("topk", [16, 128], ids=["longer than topk", "all seen"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_has_the_logits_of_transformers(megatron, make_checkpoint, schedule, topk):
    assert_parity(make_checkpoint(num_hidden_layers=7, index_topk=topk, **schedule))


@torch.no_grad()
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_layers_choose_the_keys_that_transformers_does(build, make_checkpoint, seed):
    folder = make_checkpoint(seed, num_hidden_layers=6)
    spec, bridge, (model,) = build(folder)
    load_hf([model], bridge, folder)
    tokens = random_tokens(sum(PACKED))
    sequences = PackedSequences.of(PACKED)
    with margins(), watched_choices() as ours:
        forward_hidden(model.eval(), tokens, sequences)

    theirs = choices_of_transformers(spec, folder, tokens.split(PACKED, 1))
    assert list(theirs) == [0, 1, 3, 5]
    first_t = sequences.places - sequences.position_ids[0]
    for layer, sets in theirs.items():
        found_tk = torch.where(ours[layer] < 0, -1, ours[layer] - first_t[:, None])
        assert [set(row) - {-1} for row in found_tk.tolist()] == sets


@contextmanager
def watched_choices():
    """Places that each layer with an indexer chooses."""
    found, choose = {}, SparseLatentAttention._select

    def select(self, *args):
        found[self.source] = choose(self, *args)
        return found[self.source]

    with patch.object(SparseLatentAttention, "_select", select):
        yield found


def random_tokens(count):
    return torch.randint(499, (1, count), generator=torch.Generator().manual_seed(0))


def choices_of_transformers(spec, folder, parts):
    """Positions that each query sees, by layer with an indexer; keys after a query stay hidden all the same."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    spec.mend_transformers(model)
    found = {}

    def keep(layer):
        def hook(module, args, index_1tk):
            sets = [{p for p in row if p <= t} for t, row in enumerate(index_1tk[0].tolist())]
            found.setdefault(layer, []).extend(sets)

        return hook

    for layer, module in enumerate(model.model.layers):
        if module.self_attn.indexer is not None:
            module.self_attn.indexer.register_forward_hook(keep(layer))
    for part in parts:
        model(part, use_cache=False)
    return found


@pytest.mark.parametrize(("eps", "differs"), [(1e-6, False), (1e-5, True)])
def test_transformers_alone_uses_1e_6_in_the_norms_of_latents(megatron, make_checkpoint, eps, differs):
    folder = make_checkpoint(rms_norm_eps=eps)
    spec = replace(dsa_spec(read_hf_config(folder)), mend_transformers=lambda model: None)
    parity = measure_parity(spec, dsa_bridge(spec), folder)
    assert (parity.max_rel_logit_diff > 1e-5) == differs
    assert parity.holds != differs


def test_gradients_equal_those_of_transformers_and_indexers_get_none(build, make_checkpoint):
    folder = make_checkpoint()
    spec, bridge, (model,) = build(folder)
    with margins():
        ours, theirs = gradients_of_both(spec, bridge, model, folder)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == [name for name, _ in model.named_parameters() if ".indexer." in name] != []


def test_packed_sequences_do_not_see_each_other(build, make_checkpoint):
    folder = make_checkpoint()
    spec, bridge, (model,) = build(folder)
    load_hf([model], bridge, folder)
    with margins():
        packed, alone = packed_and_alone(spec, model)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
