"""Checkpoints of random tiny GLM-5 models, written by transformers, and Megatron ready to load them."""

import pytest
import torch
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec

from rlcore.testing.engine_contract import Subject
from rlcore.testing.fixtures import build, make_checkpoint, megatron

CONFIG = {
    "model_type": "glm_moe_dsa",
    "vocab_size": 499,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 16,
    "index_topk_freq": 2,
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


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors are tiny: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def config():
    """The content of a tiny model's config.json."""
    return dict(CONFIG)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """What engines are held to their contract with. With this epsilon transformers needs no mending."""
    changes = {"num_hidden_layers": 3, "indexer_types": ["full", "shared", "full"], "rms_norm_eps": 1e-6}
    return Subject.make(tmp_path_factory.mktemp("subject"), CONFIG | changes)


@pytest.fixture
def family():
    return dsa_spec, dsa_bridge
