"""The tiny GLM-4 that `make demo` teaches two-digit additions; rlcore makes it and its problems.

python -m rlcore_glm4.demo FOLDER [--seed N]
"""

from pathlib import Path

from rlcore.testing.demo import Demo

# The order and the names are those of the published tokenizers.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)

# Weights start wider than the published 0.02, which suits models a thousand times this width.
# All query heads share one key head: a matrix product of fewer than four rows takes another kernel on CPUs,
# with other rounding, and the engine, which decodes one token a row, would part from the trainer's log-probs.
ARCHITECTURE = {
    "model_type": "glm4",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}

DEMO = Demo(
    ARCHITECTURE,
    Path(__file__).with_name("templates") / "chat.jinja",
    SPECIAL_TOKENS,
    stop_tokens=("<|endoftext|>", "<|user|>", "<|observation|>"),
)

if __name__ == "__main__":
    DEMO.main("rlcore_glm4.demo")
