import pytest

from rlcore.bridge.table import Derived, Ignore, Map, PassThrough, WeightBridge
from rlcore.errors import RlcoreError

LAYERS = {"layer": range(2)}
BRIDGE = WeightBridge(
    (
        Map("layers.{layer}.up", "decoder.{layer}.fc1", over=LAYERS),
        Map("layers.{layer}.bias", "decoder.{layer}.bias", over=LAYERS, optional=True),
        Derived("head", "embed"),
        Map("embed", "embedding"),
        PassThrough("layers.2.*"),
        Ignore("*.inv_freq", "computed"),
    )
)
HF = ["layers.0.up", "layers.1.up", "embed"]
MEGATRON = ["decoder.0.fc1", "decoder.1.fc1", "embedding"]


def test_what_a_model_is_built_without_is_kept():
    bridge = WeightBridge((*BRIDGE.rows, Map("layers.3.up", "mtp.0.fc1", kept=True)))
    names = [*HF, "layers.3.up"]
    assert bridge.passes_through("layers.3.up")
    assert not list(bridge.coverage(HF, MEGATRON).problems(""))
    assert not list(bridge.coverage(names, MEGATRON).problems(""))
    assert not list(bridge.coverage(names, [*MEGATRON, "mtp.0.fc1"]).problems(""))
    (problem,) = bridge.coverage(HF, [*MEGATRON, "mtp.0.fc1"]).problems("checkpoint")
    assert problem.message == "mtp.0.fc1 needs layers.3.up, which the checkpoint lacks"


def test_indices_are_filled_in():
    assert BRIDGE.by_hf["layers.1.up"].megatron == "decoder.1.fc1"
    assert BRIDGE.by_megatron["decoder.0.fc1"].hf == ("layers.0.up",)


def test_rows_may_run_over_several_indices():
    over = {"layer": range(2), "expert": range(3)}
    bridge = WeightBridge((Map("l{layer}.e{expert}", "d{layer}.x{expert}", over=over),))
    assert len(bridge.entries) == 6
    assert bridge.by_hf["l1.e2"].megatron == "d1.x2"


def test_a_complete_checkpoint_leaves_nothing_over():
    extra = ["head", "layers.2.mtp.weight", "layers.0.rotary.inv_freq"]
    assert not list(BRIDGE.coverage([*HF, *extra], MEGATRON).problems("x"))


def test_optional_tensors_may_be_on_both_sides_or_on_neither():
    both = BRIDGE.coverage([*HF, "layers.0.bias"], [*MEGATRON, "decoder.0.bias"])
    assert not list(both.problems("x"))


@pytest.mark.parametrize(
    ("hf", "megatron", "unmapped_hf", "unmapped_megatron"),
    [
        ([*HF, "stray"], MEGATRON, {"stray": "no row of the bridge claims it"}, {}),
        (HF, [*MEGATRON, "stray"], {}, {"stray": "no row of the bridge claims it"}),
        (HF[1:], MEGATRON, {}, {"decoder.0.fc1": "needs layers.0.up, which the checkpoint lacks"}),
        (HF, MEGATRON[1:], {"layers.0.up": "belongs to decoder.0.fc1, which the model lacks"}, {}),
        ([*HF, "layers.0.bias"], MEGATRON, {"layers.0.bias": "which the model lacks"}, {}),
    ],
)
def test_what_is_left_over_is_named_with_the_reason(hf, megatron, unmapped_hf, unmapped_megatron):
    coverage = BRIDGE.coverage(hf, megatron)
    for found, expected in (
        (coverage.unmapped_hf, unmapped_hf),
        (coverage.unmapped_megatron, unmapped_megatron),
    ):
        assert found.keys() == expected.keys()
        assert all(reason in found[name] for name, reason in expected.items())


def test_a_row_that_both_sides_lack_is_an_error_unless_it_is_optional():
    problems = list(BRIDGE.coverage(HF[1:], MEGATRON[1:]).problems("x"))
    assert [problem.message for problem in problems] == [
        "decoder.0.fc1 stands in the bridge, but neither checkpoint nor model has it"
    ]


def test_two_rows_may_not_claim_one_tensor():
    bridge = WeightBridge((Map("a", "x"), Map("a", "y")))
    with pytest.raises(RlcoreError, match="two rows claim a"):
        _ = bridge.entries
