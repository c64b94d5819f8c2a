import pytest

from rlcore.errors import RlcoreError
from rlcore.models.experts import DENSE, MOE, Experts

CONFIG = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
}


def test_a_token_meets_the_router_the_experts_it_chose_and_the_shared_one():
    experts = Experts.of(CONFIG)
    one, router = 3 * 64 * 32, 8 * 64
    assert experts.parameters(64) == router + 8 * one + one
    assert experts.active_parameters(64) == router + 2 * one + one


def test_megatron_is_told_which_layers_have_experts():
    fields = Experts.of(CONFIG).transformer_config([DENSE, MOE, MOE])
    assert fields["moe_layer_freq"] == [0, 1, 1]
    assert "moe_router_num_groups" not in fields


def test_groups_are_handed_on():
    fields = Experts.of({**CONFIG, "n_group": 4, "topk_group": 1}).transformer_config([MOE])
    assert (fields["moe_router_num_groups"], fields["moe_router_group_topk"]) == (4, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is more than n_routed_experts 8"),
        ({"norm_topk_prob": False}, "norm_topk_prob False with num_experts_per_tok 2 is not supported"),
        ({"num_experts_per_tok": 1}, "norm_topk_prob True with num_experts_per_tok 1 is not supported"),
        ({"n_shared_experts": 0}, "n_shared_experts 0 is not supported"),
        ({"n_group": 3}, "n_group 3 does not divide n_routed_experts 8"),
        ({"n_group": 4, "topk_group": 2}, "topk_group 2 is not half of num_experts_per_tok 2"),
    ],
)
def test_routers_that_megatron_computes_otherwise_are_refused(changes, message):
    with pytest.raises(RlcoreError, match=message):
        Experts.of({**CONFIG, **changes})
