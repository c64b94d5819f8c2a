"""The tiny GLM-5.2 that `make demo MODEL=glm52_dsa` teaches; who makes it and its problems is rlcore.

python -m rlcore_glm52_dsa.demo FOLDER [--seed N]
"""

from pathlib import Path

from rlcore.testing.demo import Demo

# The order and the names are those of the published tokenizer, what serves other kinds of input left out.
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
    "<think>",
    "</think>",
)

# Prompts are longer than the 16 keys that a query may see; the second layer sees those of the first. With fewer
# index heads keys would have equal scores, and engine and trainer might choose differently. Weights start wider
# than the published 0.02, which suits models a thousand times this width.
ARCHITECTURE = {
    "model_type": "glm_moe_dsa",
    "hidden_size": 64,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "index_topk": 16,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "indexer_types": ["full", "shared", "full", "full"],
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "attention_bias": False,
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
    DEMO.main("rlcore_glm52_dsa.demo")
