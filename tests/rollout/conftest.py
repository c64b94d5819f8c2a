"""A tiny GLM-4 with random weights, its byte-level tokenizer, and an engine on it."""

import pytest
from transformers import AutoModelForCausalLM

from rlcore.rollout.local import LocalEngine
from rlcore.testing.tiny import tiny_checkpoint, tiny_tokenizer

SHAPE = {
    "model_type": "glm4",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "attention_bias": True,
    "pad_token_id": 256,
    "eos_token_id": [256],
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder, SHAPE, jitter=0.1)
    tiny_tokenizer(folder, chat_template="", special_tokens=["<|end|>"], eos_token="<|end|>")
    return folder


@pytest.fixture
def engine(checkpoint):
    return LocalEngine(checkpoint, concurrency=4)


@pytest.fixture
def reference(checkpoint):
    """The same checkpoint in transformers, untouched by the engine."""
    return AutoModelForCausalLM.from_pretrained(checkpoint).eval()
