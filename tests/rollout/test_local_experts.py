import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, GptOssConfig

from rlcore.rollout.local_experts import EXPERTS, align_experts

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 50, "pad_token_id": 0}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Glm4MoeConfig(
        **TINY, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, first_k_dense_replace=0
    )
    return AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_experts_give_what_those_of_transformers_do(model, tokens):
    ids = torch.randint(50, (1, tokens))
    expected = model(ids).logits
    align_experts(model)
    assert model.config._experts_implementation == EXPERTS
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-6)


def test_experts_of_another_build_are_left_as_they_are():
    config = GptOssConfig(**TINY, num_local_experts=2, intermediate_size=16, num_attention_heads=4)
    with_biases = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    align_experts(with_biases)
    assert with_biases.config._experts_implementation == "eager"
