"""Experts without TransformerEngine, in Megatron's own mixture-of-experts layer."""

import pytest
import torch
import torch.nn.functional as F

from rlcore.models.attention import PackedSequences
from rlcore.models.forward import forward_hidden
from rlcore.models.grouped_linear import in_one_kernel, one_by_one

EXPERTS = {
    "num_moe_experts": 4,
    "moe_layer_freq": [0, 1],
    "moe_ffn_hidden_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "moe_router_topk": 2,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_load_balancing_type": "none",
    "moe_router_dtype": "fp32",
}


@pytest.fixture
def experts(build, make_spec):
    """A model whose second layer has experts, with random weights."""
    return build(transformer_config={**make_spec().transformer_config, **EXPERTS})


def gated_mlp(x, fc1, fc2):
    gate, up = (x @ fc1.T).chunk(2, -1)
    return (F.silu(gate) * up) @ fc2.T


def test_experts_have_the_names_that_transformer_engine_gives_them(experts):
    names = {name for name, _ in experts.decoder.layers[1].mlp.named_parameters()}
    weights = {f"experts.linear_fc{number}.weight{expert}" for number in (1, 2) for expert in range(4)}
    shared = {"shared_experts.linear_fc1.weight", "shared_experts.linear_fc2.weight"}
    assert names == {"router.weight"} | weights | shared
    assert "pre_mlp_layernorm.weight" in dict(experts.decoder.layers[1].named_parameters())


def test_a_layer_adds_up_its_shared_expert_and_the_chosen_ones_by_their_scores(experts):
    layer = experts.decoder.layers[1].mlp
    layer.router.expert_bias.copy_(torch.tensor([0.3, 0.0, -0.2, 0.1]))
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    out = layer(x[:, None])[0][:, 0]

    weights = dict(layer.named_parameters())
    scores = (x @ weights["router.weight"].T).sigmoid()
    chosen = (scores + layer.router.expert_bias).topk(2).indices
    shares = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    shares = shares / shares.sum(-1, keepdim=True)
    shared = [weights[f"shared_experts.linear_fc{i}.weight"] for i in (1, 2)]
    expected = gated_mlp(x, *shared)
    for expert in range(4):
        own = [weights[f"experts.linear_fc{i}.weight{expert}"] for i in (1, 2)]
        expected = expected + shares[:, expert, None] * gated_mlp(x, *own)
    torch.testing.assert_close(out, expected)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero(experts):
    experts.decoder.layers[1].mlp.router.expert_bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    forward_hidden(experts, torch.arange(6)[None], PackedSequences.of([6])).sum().backward()
    fc1 = experts.decoder.layers[1].mlp.experts.linear_fc1
    assert fc1.weight0.grad.any()
    assert not fc1.weight2.grad.any()


@pytest.mark.parametrize("tokens", [(3, 0, 5, 1), (0, 0, 0, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_kernel_for_all_experts_multiplies_as_a_loop_does(tokens, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(tokens), 16, generator=generator).to(dtype).requires_grad_()
    weights = [torch.randn(24, 16, generator=generator).to(dtype).requires_grad_() for _ in tokens]
    given = torch.randn(sum(tokens), 24, generator=generator).to(dtype)
    loop, kernel = one_by_one(x, tokens, weights), in_one_kernel(x, tokens, weights)
    torch.testing.assert_close(kernel, loop)
    gradients = [torch.autograd.grad(out, [x, *weights], given) for out in (loop, kernel)]
    torch.testing.assert_close(*gradients)


def test_every_part_of_an_expert_counts_in_the_norm_of_the_gradient(experts):
    for weight in experts.decoder.layers[1].mlp.experts.parameters():
        assert weight.tensor_model_parallel
        assert weight.allreduce


def test_a_checkpoint_numbers_experts_along_an_axis(experts):
    from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group

    saved = experts.sharded_state_dict(metadata=ensure_metadata_has_dp_cp_group(None))
    fc2 = [saved[f"decoder.layers.1.mlp.experts.linear_fc2.weight{expert}"] for expert in range(4)]
    assert len({tensor.key for tensor in fc2}) == 1
    assert [tensor.global_offset[0] for tensor in fc2] == [0, 1, 2, 3]
