"""Checkpoints of random tiny GLM-4 models, written by transformers, and Megatron ready to load them."""

import pytest
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import glm4_spec

from rlcore.testing.fixtures import build, make_checkpoint, megatron

CONFIG = {
    "model_type": "glm4",
    "vocab_size": 499,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "pad_token_id": 0,
    "eos_token_id": [1, 2],
}


@pytest.fixture
def config():
    """The content of a tiny model's config.json."""
    return dict(CONFIG)


@pytest.fixture
def family():
    return glm4_spec, glm4_bridge
