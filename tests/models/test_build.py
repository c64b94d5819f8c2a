import pytest
import torch

from rlcore.config.schema import Parallel, Recompute


@pytest.mark.parametrize(("vocab", "tp", "rows"), [(499, 1, 499), (499, 2, 500), (500, 4, 500), (3, 8, 8)])
def test_vocabularies_grow_until_ranks_share_them_equally(megatron, vocab, tp, rows):
    from rlcore.models.build import padded_vocab_size

    assert padded_vocab_size(vocab, tp) == rows


def test_a_meta_model_has_the_same_tensors_and_no_memory(megatron, build, make_spec):
    from rlcore.models.build import build_model, transformer_config

    spec = make_spec()
    config = transformer_config(
        spec, parallel=Parallel(), dtype=torch.float32, recompute=Recompute(), megatron_overrides={}
    )
    (meta,) = build_model(spec, config, meta=True)
    real = {name: tensor.shape for name, tensor in build().named_parameters()}
    assert {name: tensor.shape for name, tensor in meta.named_parameters()} == real
    assert {tensor.device.type for tensor in meta.parameters()} == {"meta"}


def test_weights_have_the_dtype_that_was_asked_for(build):
    assert {parameter.dtype for parameter in build(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("layout", "cp", "own"), [("zigzag", 2, False), ("contiguous", 2, True), ("contiguous", 1, False)]
)
def test_contiguous_pieces_are_attended_to_in_plain_torch_whatever_there_is(
    megatron, make_spec, monkeypatch, layout, cp, own
):
    """Another core attention stands for TransformerEngine's."""
    from megatron.core.models.gpt.gpt_layer_specs import TESpecProvider

    from rlcore.models.attention import PackedAttention
    from rlcore.models.build import build_model, transformer_config

    class Other(PackedAttention):
        pass

    monkeypatch.setattr(TESpecProvider, "core_attention", lambda self: Other)
    spec = make_spec(cp_layout=layout)
    config = transformer_config(
        spec, parallel=Parallel(cp=cp), dtype=torch.float32, recompute=Recompute(), megatron_overrides={}
    )
    (model,) = build_model(spec, config, meta=True)
    kinds = {type(layer.self_attention.core_attention) for layer in model.decoder.layers}
    assert kinds == {PackedAttention if own else Other}
