"""Checkpoints of random tiny GLM-4.5 models, written by transformers, and Megatron ready to load them."""

import pytest
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec

from rlcore.testing.fixtures import build, make_checkpoint, megatron

CONFIG = {
    "model_type": "glm4_moe",
    "vocab_size": 499,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 256,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "use_qk_norm": True,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 0,
    "eos_token_id": [1, 2],
}


@pytest.fixture
def config():
    """The content of a tiny model's config.json."""
    return dict(CONFIG)


@pytest.fixture
def family():
    return glm45_spec, glm45_bridge
