import torch


def test_a_sandwich_layer_normalises_what_joins_the_residual_stream(megatron, build):
    from functools import partial

    from rlcore.models.attention import PackedSequences
    from rlcore.models.layers import SandwichNormLayer, decoder_block

    model = build(layer_specs=partial(decoder_block, layer=SandwichNormLayer), layers=1)
    (layer,) = model.decoder.layers
    seen = {}
    for name in ("self_attention", "mlp", "post_self_attn_layernorm", "post_mlp_layernorm"):
        getattr(layer, name).register_forward_hook(lambda _, i, out, name=name: seen.update({name: out}))
    x_t1h = torch.randn(6, 1, 32, generator=torch.Generator().manual_seed(0))
    rotary = model.rotary_pos_emb(6, packed_seq=True)
    out, _ = layer(x_t1h, attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=PackedSequences.of([6]))

    def normalised(name, norm):
        return torch.nn.functional.rms_norm(seen[name][0], (32,), norm.weight, norm.eps)

    expected = (
        x_t1h
        + normalised("self_attention", layer.post_self_attn_layernorm)
        + normalised("mlp", layer.post_mlp_layernorm)
    )
    torch.testing.assert_close(out, expected)
