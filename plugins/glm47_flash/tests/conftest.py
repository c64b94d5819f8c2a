"""Checkpoints of random tiny GLM-4.7-Flash models, written by transformers, and Megatron ready to load them."""

import pytest
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

from rlcore.testing.fixtures import build, make_checkpoint, megatron

CONFIG = {
    "model_type": "glm4_moe_lite",
    "vocab_size": 499,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": [1, 2],
}


@pytest.fixture
def config():
    """The content of a tiny model's config.json."""
    return dict(CONFIG)


@pytest.fixture
def family():
    return flash_spec, flash_bridge
