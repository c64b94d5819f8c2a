"""Splits by the sizes of their ends, where not every layer may start a stage."""

from itertools import accumulate, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.config.schema import Parallel
from rlcore.layout.splits import Split, legal_splits, nearest_splits, with_split
from rlcore.layout.stages import split_layers

schedules = st.lists(st.booleans(), min_size=1, max_size=23).map(lambda later: (True, *later))


def by_trying(starts, pp, vpp=1):
    """Every (first, each middle, last) that uses up the layers, with chunks that all start where they may."""
    for first, middle, last in product(
        range(len(starts)), range(len(starts) if pp > 2 else 1), range(len(starts))
    ):
        ranks = [first, *[middle] * (pp - 2), last]
        if sum(ranks) == len(starts) and all(ranks) and not any(size % vpp for size in ranks):
            chunks = [size // vpp for size in ranks] * vpp
            if all(starts[first] for first in list(accumulate(chunks, initial=0))[:-1]):
                yield first, middle, last


@pytest.mark.parametrize(
    ("pp", "count"), [(2, 20), (4, 81), (6, 36), (8, 21), (10, 14), (12, 9), (13, 8), (16, 5)]
)
def test_as_many_splits_of_the_published_model_are_legal_as_its_rule_allows(published, pp, count):
    assert len(legal_splits(published, pp)) == count


def test_the_published_split_is_one_of_them(published):
    assert Split(14, 8, 16) in legal_splits(published, 8)
    assert legal_splits(published, 16) == ((2, 4, 20), (6, 4, 16), (10, 4, 12), (14, 4, 8), (18, 4, 4))


def test_equal_chunks_of_the_published_model_are_never_legal(published):
    assert not any(legal_splits(published, pp, vpp) for pp in range(2, 17) for vpp in (2, 3, 4))


@given(starts=schedules, pp=st.integers(2, 6), vpp=st.integers(1, 3))
def test_legal_splits_are_those_that_trying_finds(starts, pp, vpp):
    found = legal_splits(starts, pp, vpp)
    assert sorted(found) == sorted(by_trying(starts, pp, vpp))


@given(starts=schedules, pp=st.integers(2, 5), vpp=st.integers(1, 2), asked=st.booleans())
def test_the_keys_of_a_split_say_it(starts, pp, vpp, asked):
    parallel = Parallel(pp=pp, vpp=vpp, last_stage_layers=1 if asked else None)
    for split in legal_splits(starts, pp, vpp):
        stages = split_layers(with_split(parallel, split), len(starts))
        assert [len(stages[rank][chunk]) for chunk in range(vpp) for rank in range(pp)] == split.chunks(pp, vpp)


@pytest.mark.parametrize(("pp", "vpp"), [(2, 1), (2, 2), (3, 1), (4, 2)])
def test_megatron_builds_the_layers_of_a_split_where_it_puts_them(pp, vpp):
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    for split in legal_splits((True,) * 16, pp, vpp):
        parallel = with_split(Parallel(pp=pp, vpp=vpp), split)
        config = TransformerConfig(
            num_layers=16,
            hidden_size=1,
            num_attention_heads=1,
            pipeline_model_parallel_size=pp,
            virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
            num_layers_in_first_pipeline_stage=parallel.first_stage_layers,
            num_layers_in_last_pipeline_stage=parallel.last_stage_layers,
            pipeline_dtype="float32",
        )
        for rank, chunks in enumerate(split_layers(parallel, 16)):
            for chunk, layers in enumerate(chunks):
                place = {"vp_stage": chunk if vpp > 1 else None, "pp_rank": rank}
                first = get_transformer_layer_offset(config, **place)
                assert layers == tuple(range(first, first + get_num_layers_to_build(config, **place)))


@pytest.mark.parametrize(
    ("asked", "pp", "nearest"),
    [
        ({}, 8, (14, 8, 16)),
        ({"first_stage_layers": 14}, 8, (14, 8, 16)),
        ({"first_stage_layers": 10, "last_stage_layers": 8}, 8, (2, 12, 4)),
        ({"last_stage_layers": 39}, 2, (38, 0, 40)),
        ({"first_stage_layers": 71}, 2, (58, 0, 20)),
    ],
)
def test_the_nearest_split_moves_few_layers(published, asked, pp, nearest):
    assert nearest_splits(Parallel(pp=pp, **asked), published, pp)[0] == nearest


def test_no_end_is_offered_that_all_others_would_wait_for(published):
    assert nearest_splits(Parallel(pp=16), published, 16) == [(10, 4, 12)]
