"""The tiny GLM-4.5 that `make demo MODEL=glm45` teaches two-digit additions; rlcore makes it and its problems.

python -m rlcore_glm45.demo FOLDER [--seed N]
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
    "/nothink",
    "<think>",
    "</think>",
)

# One dense layer and one of experts. Weights start wider than the published 0.02, which suits models a thousand
# times this width. All query heads share one key head: a matrix product of fewer than four rows takes another
# kernel on CPUs, with other rounding, and the engine, which decodes a token a row, would part from the trainer.
ARCHITECTURE = {
    "model_type": "glm4_moe",
    "hidden_size": 64,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "attention_bias": True,
    "use_qk_norm": True,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 1,
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
    DEMO.main("rlcore_glm45.demo")
