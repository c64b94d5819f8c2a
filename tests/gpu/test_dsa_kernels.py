"""Triton's kernels of sparse attention on a GPU: the exactness that its interpreter shows on a CPU, at size."""

import pytest
import torch
from rlcore_glm52_dsa.kernels import functions
from rlcore_glm52_dsa.kernels.testing import (
    CHOICES,
    attended,
    best_places,
    choices,
    drawn_attention,
    selected_in_tiles,
    spans,
    whole_numbers,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Relative to the largest number. bfloat16 has 8 bits, of which rounding probabilities takes the last.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
WIDTHS = (512, 64)


@pytest.mark.parametrize("heads", [16, 24, 64])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", CHOICES)
def test_attention_and_its_gradients_are_those_of_the_reference(kind, dtype, heads):
    index = choices(kind, queries=256, keys=4096, chosen=2048)
    inputs = *drawn_attention(index, 4096, heads, WIDTHS, dtype), index
    expected = attended("reference", *inputs, device="cuda")
    for got, want in zip(attended("triton", *inputs, device="cuda"), expected, strict=True):
        assert got.dtype == dtype
        assert (got - want).abs().max() <= TOLERANCES[dtype] * want.abs().max()


def test_queries_without_a_key_get_zeros_and_give_no_gradient():
    index = torch.full((300, 2048), -1, dtype=torch.int32)
    inputs = *drawn_attention(index, 100, 64, WIDTHS, torch.bfloat16), index
    assert [x.abs().max().item() for x in attended("triton", *inputs, device="cuda")] == [0.0, 0.0, 0.0]


def test_queries_may_have_more_than_2_to_the_31_numbers():
    query = torch.randn(65_536, 64, 576, dtype=torch.bfloat16, device="cuda")
    key = torch.randn(1000, 576, dtype=torch.bfloat16, device="cuda")
    index = torch.randint(1000, (len(query), 16), dtype=torch.int32, device="cuda")
    got = functions("triton").attend(query, key, index, 0.05, 512)[-4:]
    want = functions("reference").attend(query[-4:], key, index[-4:], 0.05, 512)
    assert (got - want).abs().max() <= TOLERANCES[torch.bfloat16] * want.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("scores", [2**26, 2**22], ids=["one tile", "many tiles"])
def test_the_best_keys_are_selected_and_of_equals_the_earlier(scores, dtype):
    lengths = (1, 700, 5000, 299)
    inputs = *whole_numbers(sum(lengths), heads=32, width=128, dtype=dtype), *spans(lengths)
    inputs = [x.cuda() for x in inputs]
    assert torch.equal(selected_in_tiles(scores, *inputs, topk=2048), best_places(*inputs, 2048))


def test_the_reference_selects_keys_of_the_same_scores():
    generator = torch.Generator().manual_seed(0)
    shapes = (6000, 32, 128), (6000, 128), (6000, 32)
    query, key, weight = (torch.randn(shape, generator=generator).bfloat16().cuda() for shape in shapes)
    first, last = (x.cuda() for x in spans([6000]))
    rows = torch.einsum("ti,tiT->tT", weight.float(), (query.float() @ key.float().T).relu())
    chosen = [functions(name).select(query, key, weight, first, last, 2048) for name in ("triton", "reference")]
    got, want = (
        rows.gather(1, index.clamp(min=0).long()).masked_fill(index < 0, 0).sort(1).values for index in chosen
    )
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-2)
