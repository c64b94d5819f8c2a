"""Triton's kernels on the CPU: run by its interpreter, and compiled for a GPU that is not here.

The interpreter multiplies bfloat16 as if they were integers; float16 takes the same way through the kernels.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
import triton
from rlcore_glm52_dsa import kernels
from rlcore_glm52_dsa.kernels import functions, selection, sparse
from rlcore_glm52_dsa.kernels.testing import (
    CHOICES,
    attended,
    best_places,
    choices,
    drawn_attention,
    parity,
    selected_in_tiles,
    spans,
    whole_numbers,
)
from rlcore_glm52_dsa.spec import dsa_spec
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rlcore.errors import RlcoreError

TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3}
LENGTHS, TOPK = (3, 24, 9, 1), 8
# What a program can have on an H100 or H200, in bytes.
SHARED_MEMORY = 227 * 1024


@pytest.fixture(scope="module")
def interpreted():
    """Calls a function in a process of its own, as Triton must be told before it is imported."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()
        yield lambda function, *args, **kwargs: pool.submit(function, *args, **kwargs).result()


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", CHOICES)
def test_attention_and_its_gradients_are_those_of_the_reference(interpreted, kind, dtype):
    index = choices(kind, queries=12, keys=90, chosen=70)
    inputs = *drawn_attention(index, keys=90, heads=3, widths=(24, 8), dtype=dtype), index
    expected = attended("reference", *inputs)
    for got, want in zip(interpreted(attended, "triton", *inputs), expected, strict=True):
        assert got.dtype == dtype
        assert (got - want).abs().max() <= TOLERANCES[dtype] * want.abs().max()


def test_heads_are_spread_over_programs(interpreted):
    index = choices("distinct", queries=2, keys=8, chosen=4)
    inputs = *drawn_attention(index, keys=8, heads=70, widths=(16, 16), dtype=torch.float32), index
    for got, want in zip(interpreted(attended, "triton", *inputs), attended("reference", *inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_queries_without_a_key_get_zeros_and_give_no_gradient(interpreted):
    index = torch.full((3, 20), -1, dtype=torch.int32)
    inputs = *drawn_attention(index, keys=5, heads=2, widths=(16, 4), dtype=torch.float32), index
    assert [x.abs().max().item() for x in interpreted(attended, "triton", *inputs)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("dtype", "scores"), [(torch.float32, 2**20), (torch.float16, 200)])
def test_the_best_keys_are_selected_and_of_equals_the_earlier(interpreted, dtype, scores):
    inputs = *whole_numbers(sum(LENGTHS), heads=16, width=8, dtype=dtype), *spans(LENGTHS)
    got = interpreted(selected_in_tiles, scores, *inputs, topk=TOPK)
    assert got.dtype == torch.int32
    assert got.tolist() == best_places(*inputs, TOPK).tolist()


def test_the_reference_selects_the_same_keys(interpreted):
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    shapes = (tokens, 16, 8), (tokens, 8), (tokens, 16)
    inputs = *(torch.randn(shape, generator=generator) for shape in shapes), *spans(LENGTHS)
    got, want = (
        interpreted(selected_in_tiles, 2**20, *inputs, topk=TOPK),
        functions("reference").select(*inputs, TOPK),
    )
    assert got.tolist() == [sorted(row, key=lambda place: (place < 0, place)) for row in want.tolist()]


def test_queries_may_be_a_part_of_the_tokens(interpreted):
    query, key, weight = whole_numbers(sum(LENGTHS), heads=2, width=4, dtype=torch.float32)
    first, last = spans(LENGTHS)
    rows = slice(10, 20)
    inputs = query[rows], key, weight[rows], first[rows], last[rows]
    got = interpreted(selected_in_tiles, 2**20, *inputs, topk=TOPK)
    assert got.tolist() == best_places(*inputs, TOPK).tolist()


def test_no_more_columns_are_made_than_the_longest_sequence_has_keys(interpreted):
    inputs = *whole_numbers(10, heads=1, width=4, dtype=torch.float32), *spans((3, 7))
    got = interpreted(selected_in_tiles, 2**20, *inputs, topk=2048)
    assert got.tolist() == best_places(*inputs, 2048).tolist()
    assert got.shape == (10, 7)


QUERY = torch.empty(1, 64, 576, dtype=torch.bfloat16, device="meta")
INDEX = torch.empty(1, 2048, dtype=torch.int32, device="meta")
INDEX_QUERY = torch.empty(1, 32, 128, dtype=torch.bfloat16, device="meta")
FLOAT32 = {"score", "weight", "log_sum", "key_grad"}
PLACES = {"index", "first", "last"}


def compiled_for_hopper(kernel, sizes):
    options = {name: sizes[name] for name in sizes if name.startswith("num_")}
    constants = {name: sizes[name] for name in sizes if name not in options}

    def type_of(parameter):
        pointer = "*fp32" if parameter.name in FLOAT32 else "*i32" if parameter.name in PLACES else "*bf16"
        return "constexpr" if parameter.is_constexpr else parameter.annotation_type or pointer

    signature = {parameter.name: type_of(parameter) for parameter in kernel.params}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if "*" in kind
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@pytest.mark.parametrize("heads", [16, 64])
def test_attention_fits_on_a_hopper_gpu_at_the_published_sizes(heads):
    query = QUERY[:, :heads]
    forward = compiled_for_hopper(sparse.forward_kernel, sparse.forward_sizes(query, INDEX, 512))
    backward = compiled_for_hopper(sparse.backward_kernel, sparse.backward_sizes(query, INDEX, 512))
    assert max(forward.metadata.shared, backward.metadata.shared) <= SHARED_MEMORY


def test_selection_fits_on_a_hopper_gpu_at_the_published_sizes():
    score = compiled_for_hopper(selection.score_kernel, selection.score_sizes(INDEX_QUERY))
    pick = compiled_for_hopper(selection.pick_kernel, selection.pick_sizes(2048))
    assert max(score.metadata.shared, pick.metadata.shared) <= SHARED_MEMORY


def test_kernels_that_cannot_run_are_refused_with_what_would_work(monkeypatch):
    with pytest.raises(RlcoreError, match=r"need a CUDA device\n.*try: .*reference"):
        functions("triton")
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(RlcoreError, match=r"Triton is not installed\n.*try: .*reference"):
        functions("triton")


def test_a_recipe_chooses_the_kernels(interpreted, make_checkpoint):
    found = interpreted(parity, make_checkpoint(num_hidden_layers=1))
    assert found.holds


def test_options_that_there_are_not_are_refused(config):
    with pytest.raises(RlcoreError, match=r"model\.options\.kernel: .*no such option\n.*mean kernels"):
        dsa_spec(config).chosen({"kernel": "triton"})
