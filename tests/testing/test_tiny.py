import torch
from transformers import AutoModelForCausalLM

from rlcore.testing.tiny import tiny_checkpoint

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 300,
}


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_the_seed_draws_the_weights_and_leaves_the_global_random_state_alone(tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny_checkpoint(tmp_path / name, CONFIG, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    a, b, c = (weights(tmp_path / name)["lm_head.weight"] for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_jitter_moves_the_norms_that_start_as_ones(tmp_path):
    tiny_checkpoint(tmp_path, CONFIG, jitter=0.1)
    assert weights(tmp_path)["model.norm.weight"].std() > 0.05
