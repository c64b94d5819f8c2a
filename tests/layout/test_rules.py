"""What the sizes of a model allow, as Megatron splits it."""

import pytest

from rlcore.config.schema import MTP, Model, Parallel, Recipe
from rlcore.layout.rules import model_problems, mtp_problems
from rlcore.models.spec import LayerInfo, ModelSpec

DENSE = {"num_attention_heads": 12, "num_query_groups": 4, "ffn_hidden_size": 48}
EXPERTS = {**DENSE, "num_moe_experts": 6, "moe_ffn_hidden_size": 20, "moe_shared_expert_intermediate_size": 36}


def toy(fields=DENSE, **more):
    return ModelSpec(
        model_type="toy",
        hf_config={},
        hidden_size=8,
        vocab_size=10,
        layers=(),
        transformer_config=fields,
        model_args={},
        layer_specs=lambda config, stage: None,
        **more,
    )


def problems(fields=DENSE, **parallel):
    return [
        (one.place.removeprefix("parallel."), one.message, one.remedy)
        for one in model_problems(Parallel(**parallel), toy(fields))
    ]


@pytest.mark.parametrize(
    ("layers", "tied", "pp", "message"),
    [
        (0, False, 1, "the model has no MTP layers, by its config.json"),
        (1, False, 2, None),
        (1, True, 1, None),
        (1, True, 2, "Megatron cannot tie the output layer"),
    ],
)
def test_mtp_layers_are_there_and_have_their_embedding(layers, tied, pp, message):
    layer = LayerInfo(kind="dense", parameters=0, flops=float)
    recipe = Recipe(model=Model(checkpoint="toy"), parallel=Parallel(pp=pp), mtp=MTP(num_layers=1))
    found = list(mtp_problems(recipe, toy(mtp_layers=(layer,) * layers, tied_embeddings=tied)))
    assert [problem.place for problem in found] == (["mtp.num_layers"] if message else [])
    assert all(message in problem.message for problem in found)


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
