import pytest
import torch


def test_parameters_have_the_names_that_transformer_engine_gives_them(build):
    names = {name for name, _ in build(layers=1).decoder.layers[0].named_parameters()}
    assert names == {
        "self_attention.linear_qkv.layer_norm_weight",
        "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight",
        "mlp.linear_fc1.layer_norm_weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
    }


def test_a_norm_is_an_rms_norm_of_its_own_weight(build):
    norm = build().decoder.final_layernorm
    x = torch.randn(4, 32)
    expected = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_other_norms_are_refused(build):
    from rlcore.models.local_te import LocalNorm

    config = build().config
    config.normalization = "LayerNorm"
    with pytest.raises(ValueError, match="only RMSNorm"):
        LocalNorm(config, 8)


def test_replicated_weights_are_summed_over_sequence_parallel_ranks(build):
    from rlcore.models.local_te import ReplicatedLinear

    config = build().config
    linear = ReplicatedLinear(8, 4, config=config)
    assert linear.weight.sequence_parallel is config.sequence_parallel
    out, bias = linear(torch.ones(2, 8))
    assert (out.shape, bias) == ((2, 4), None)


def test_saved_names_are_those_of_the_parameters(build):
    from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group

    model = build(layers=1)
    saved = model.sharded_state_dict(metadata=ensure_metadata_has_dp_cp_group(None))
    assert {name for name, _ in model.named_parameters()} <= saved.keys()
