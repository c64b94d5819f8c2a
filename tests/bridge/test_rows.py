from rlcore.bridge.rows import gated_mlp, latent_attention, mixture_of_experts, packed_qkv
from rlcore.bridge.table import WeightBridge
from rlcore.bridge.transforms import PackedQKV

LAYERS = {"layer": [1, 2]}


def test_queries_keys_and_values_are_one_weight_and_perhaps_one_bias():
    bridge = WeightBridge(packed_qkv("l.{layer}.", "m.{layer}.", PackedQKV(4, 2, 8), LAYERS))
    weight, bias = bridge.by_megatron["m.2.linear_qkv.weight"], bridge.by_megatron["m.2.linear_qkv.bias"]
    assert weight.hf == ("l.2.q_proj.weight", "l.2.k_proj.weight", "l.2.v_proj.weight")
    assert (weight.optional, bias.optional) == (False, True)
    assert weight.transform.source_shapes((64, 5), tp=1) == ((32, 5), (16, 5), (16, 5))


def test_gate_and_up_are_one_weight():
    bridge = WeightBridge(gated_mlp("l.{layer}.", "m.{layer}.", LAYERS))
    assert bridge.by_megatron["m.1.linear_fc1.weight"].hf == ("l.1.gate_proj.weight", "l.1.up_proj.weight")
    assert bridge.by_megatron["m.1.linear_fc2.weight"].hf == ("l.1.down_proj.weight",)


def test_each_expert_of_each_layer_has_its_weights_beside_router_and_shared_expert():
    bridge = WeightBridge(mixture_of_experts("l.{layer}.", "m.{layer}.", LAYERS, experts=3))
    assert bridge.by_megatron["m.2.experts.linear_fc2.weight2"].hf == ("l.2.experts.2.down_proj.weight",)
    assert bridge.by_megatron["m.2.router.expert_bias"].hf == ("l.2.gate.e_score_correction_bias",)
    assert bridge.by_hf["l.1.shared_experts.up_proj.weight"].megatron == "m.1.shared_experts.linear_fc1.weight"
    assert len(bridge.entries) == 2 * (2 + 2 + 3 * 2)


def test_norms_of_latents_belong_to_the_projections_after_them_unless_they_are_modules():
    fused, alone = (WeightBridge(latent_attention("a.", "b.", {}, fused_norms=on)) for on in (True, False))
    assert fused.by_hf["a.q_a_layernorm.weight"].megatron == "b.linear_q_up_proj.layer_norm_weight"
    assert alone.by_hf["a.q_a_layernorm.weight"].megatron == "b.q_layernorm.weight"
    assert alone.by_hf["a.kv_a_layernorm.weight"].megatron == "b.kv_layernorm.weight"
