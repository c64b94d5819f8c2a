"""FP8 in blocks, against the formula written out block by block, and the layout of published files."""

import pytest
import torch
from safetensors.torch import save_file

from rlcore.bridge.fp8 import Fp8Format, dequantize_blocks, quantize_blocks, quantized, read_fp8_format
from rlcore.errors import RlcoreError

BLOCK = (128, 128)


def weight(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (200, 130), (1, 5)])
def test_each_block_is_divided_by_its_largest_magnitude_over_448(shape):
    weight_nk = weight(*shape)
    values, scales = quantize_blocks(weight_nk, BLOCK)
    rows, columns = (-(-size // 128) for size in shape)
    assert (scales.shape, scales.dtype, values.dtype) == ((rows, columns), torch.float32, torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            place = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            scale = weight_nk[place].abs().max() / 448
            assert scales[i, j] == scale
            assert torch.equal(values[place].float(), (weight_nk[place] / scale).to(values.dtype).float())


def test_what_comes_back_is_as_close_as_three_bits_of_mantissa_allow():
    weight_nk = weight(300, 300)
    values, scales = quantize_blocks(weight_nk, BLOCK)
    back = dequantize_blocks(values, scales, BLOCK)
    # Half of the last of three bits; below 2**-6 numbers are spaced evenly.
    spacing = torch.maximum(weight_nk.abs() / 16, scales.max() * 2**-10)
    assert bool(((back - weight_nk).abs() <= spacing * 1.001).all())


def test_a_block_of_zeros_stays_one():
    values, scales = quantize_blocks(torch.zeros(128, 256), BLOCK)
    assert bool((scales > 0).all())
    assert not dequantize_blocks(values, scales, BLOCK).any()


def test_scales_may_be_powers_of_two_that_leave_room_for_the_largest():
    values, scales = quantize_blocks(weight(256, 128), BLOCK, power_of_2=True)
    assert torch.equal(scales.log2(), scales.log2().round())
    assert values.float().abs().max() <= 448


def test_bf16_is_quantized_as_the_fp32_that_it_stands_for():
    rounded = weight(130, 140).bfloat16()
    for found, expected in zip(
        quantize_blocks(rounded, BLOCK), quantize_blocks(rounded.float(), BLOCK), strict=True
    ):
        assert torch.equal(found.float(), expected.float())


def test_named_weights_are_followed_by_their_scales_and_others_pass():
    fp8 = Fp8Format(frozenset({"a.weight"}), BLOCK)
    found = dict(quantized([("a.weight", weight(200, 130)), ("b.weight", weight(4, 4))], fp8))
    assert list(found) == ["a.weight", "a.weight_scale_inv", "b.weight"]
    assert found["a.weight_scale_inv"].shape == (2, 2)
    assert found["b.weight"].dtype == torch.float32


@pytest.fixture
def published(tmp_path):
    """A folder laid out as published FP8 checkpoints are, and a way to change its quantization_config."""
    values, scales = quantize_blocks(weight(200, 130), BLOCK)
    attention, experts = "model.layers.0.self_attn.kv_a_proj_with_mqa", "model.layers.0.mlp.experts.0.down_proj"
    tensors = {f"{name}.weight": values.clone() for name in (attention, experts)}
    tensors |= {f"{name}.weight_scale_inv": scales.clone() for name in (attention, experts)}
    tensors |= {"lm_head.weight": weight(8, 8).bfloat16(), "model.layers.0.mlp.gate.weight": weight(4, 8)}
    save_file(tensors, tmp_path / "model.safetensors")

    def config(**changes):
        return {
            "quantization_config": {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"],
                **changes,
            }
        }

    return tmp_path, config


def test_what_is_fp8_in_the_files_is_fp8_on_the_way(published):
    folder, config = published
    fp8 = read_fp8_format(folder, config())
    assert fp8.names == {
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.layers.0.mlp.experts.0.down_proj.weight",
    }
    assert (fp8.block, fp8.power_of_2) == ((128, 128), False)
    assert read_fp8_format(folder, config(scale_fmt="ue8m0")).power_of_2


def test_files_that_contradict_modules_to_not_convert_are_refused(published):
    folder, config = published
    module = "model.layers.0.self_attn.kv_a_proj_with_mqa"
    with pytest.raises(RlcoreError, match=f"names {module}"):
        read_fp8_format(folder, config(modules_to_not_convert=[module]))


def test_other_kinds_of_quantization_are_refused(published):
    folder, config = published
    with pytest.raises(RlcoreError, match="compressed-tensors"):
        read_fp8_format(folder, config(quant_method="compressed-tensors"))


def test_a_checkpoint_without_quantization_has_no_format(tmp_path):
    assert read_fp8_format(tmp_path, {}) is None
