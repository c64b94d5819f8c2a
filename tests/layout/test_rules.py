"""What the sizes of a model allow, as Megatron splits it."""

import pytest

from rlcore.config.schema import Parallel
from rlcore.layout.rules import model_problems
from rlcore.models.spec import ModelSpec

DENSE = {"num_attention_heads": 12, "num_query_groups": 4, "ffn_hidden_size": 48}
EXPERTS = {**DENSE, "num_moe_experts": 6, "moe_ffn_hidden_size": 20, "moe_shared_expert_intermediate_size": 36}


def problems(fields=DENSE, **parallel):
    spec = ModelSpec(
        model_type="toy",
        hf_config={},
        hidden_size=8,
        vocab_size=10,
        layers=(),
        transformer_config=fields,
        model_args={},
        layer_specs=lambda config, stage: None,
    )
    return [
        (one.place.removeprefix("parallel."), one.message, one.remedy)
        for one in model_problems(Parallel(**parallel), spec)
    ]


@pytest.mark.parametrize("tp", [1, 2, 4, 12])
def test_key_heads_are_shared_evenly_or_copied(tp):
    assert problems(tp=tp) == []


@pytest.mark.parametrize(
    ("sizes", "key", "message", "remedy"),
    [
        ({"tp": 5}, "tp", "5 does not divide the 12 attention heads", "one of 1, 2, 4"),
        ({"tp": 6}, "tp", "6 neither divides the 4 key-value heads nor is a multiple", "one of 1, 2, 4, 12"),
        ({"tp": 7}, "tp", "7 does not divide the MLP's width 48", "one of 1, 2, 4, 12"),
        ({"ep": 2}, "ep", "toy has no experts to spread", "ep: 1"),
        ({"fields": EXPERTS, "ep": 4}, "ep", "4 does not divide the 6 experts", "one of 1, 2, 3, 6"),
        ({"fields": EXPERTS, "tp": 8}, "tp", "8 does not divide the shared expert's width 36", "1, 2, 4, 12"),
        ({"fields": EXPERTS, "tp": 12}, "tp", "12 does not divide an expert's width 20", "1, 2, 4, 5"),
        ({"fields": EXPERTS, "ep": 2, "etp": 3}, "etp", "3 does not divide an expert's width 20", "1, 2, 4"),
    ],
)
def test_a_size_that_does_not_divide_the_model_is_refused_with_sizes_that_do(sizes, key, message, remedy):
    found = problems(**sizes)
    match = next(one for one in found if message in one[1])
    assert match[0] == key
    assert remedy in match[2]
