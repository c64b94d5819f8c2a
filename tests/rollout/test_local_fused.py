"""Attention with one product and one rotation gives what transformers' own gives."""

import asyncio
from functools import partial

import pytest
from transformers import AutoModelForCausalLM

from rlcore.rollout import local_fused
from rlcore.rollout.local import LocalEngine
from rlcore.rollout.local_fused import FusedAttention, fuse_attention
from rlcore.testing.engine_contract import answers, mixed_requests
from rlcore.testing.tiny import tiny_checkpoint, tiny_tokenizer

# Rotated pairs stand side by side in the first, half a rotation apart in the others.
SHAPES = {
    "neighbours": {"model_type": "glm4", "attention_bias": True},
    "no bias": {"model_type": "glm4", "attention_bias": False, "num_key_value_heads": 1},
    "halves": {"model_type": "glm4_moe", "use_qk_norm": False, "attention_bias": True},
    "norms of heads": {"model_type": "glm4_moe", "use_qk_norm": True},
}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 256,
    "eos_token_id": [256],
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def shaped(request, tmp_path_factory):
    """A checkpoint, and what fuses its attention."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder, SIZES | request.param, jitter=0.1)
    tiny_tokenizer(folder, chat_template="", special_tokens=["<|end|>"], eos_token="<|end|>")
    return folder, partial(fuse_attention, neighbours=request.param["model_type"] == "glm4")


def test_tokens_and_log_probs_are_those_without_it(shaped):
    folder, fuse = shaped
    plain, fused = LocalEngine(folder, concurrency=4), LocalEngine(folder, concurrency=4, serve=fuse)
    pairs = zip(*(asyncio.run(answers(engine, mixed_requests())) for engine in (plain, fused)), strict=True)
    for expected, got in pairs:
        assert got.tokens == expected.tokens
        assert got.log_probs == pytest.approx(expected.log_probs, abs=1e-5)


def test_large_layers_stay_as_they_are(shaped, monkeypatch):
    folder, fuse = shaped
    model = AutoModelForCausalLM.from_pretrained(folder)
    monkeypatch.setattr(local_fused, "LEAST_ELEMENTS", 1)
    fuse(model)
    assert not any(isinstance(module, FusedAttention) for module in model.modules())
