"""Pipeline stages: equal, uneven, and Megatron's free-form layouts, read as Megatron reads them."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.config.schema import Parallel
from rlcore.layout.stage_rules import stage_problems
from rlcore.layout.stages import chunks_per_rank, mtp_rank, split_layers, written_out

ANY = [True]  # a layer that may start a stage


def free_form(text, pp=2, **sizes):
    return Parallel(pp=pp, pipeline_layout=text, **sizes)


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ("Et|tL", ["Et", "tL"]),
        ("E,t*3|(tt|)*2,L", ["Ettt", "tt", "tt", "L"]),
        ("Et|(t*2|)*2mL", ["Et", "tt", "tt", "mL"]),
        ("E|(|t)*2L", ["E", "", "t", "tL"]),
    ],
)
def test_repetitions_are_written_out(text, chunks):
    assert written_out(text) == chunks


chunk = st.from_regex(r"(t(\*[1-3])?){0,3}", fullmatch=True)
repeated = st.builds("({}|{})*{}|".format, chunk, chunk, st.integers(1, 3))
body = st.lists(repeated | chunk.map("{}|".format), max_size=4)


@given(body.map(lambda parts: f"E{''.join(parts)},t*2mL"))
def test_a_free_form_layout_is_read_as_megatron_reads_it(text):
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    names = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}
    theirs = PipelineParallelLayerLayout.parse_str_to_list(text)
    assert written_out(text) == ["".join(names[layer.name] for layer in chunk) for chunk in theirs]


def test_layers_of_a_free_form_layout_are_where_megatron_builds_them(monkeypatch):
    from megatron.core import parallel_state
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    monkeypatch.setattr(parallel_state, "_VIRTUAL_PIPELINE_MODEL_PARALLEL_WORLD_SIZE", 2)
    parallel = free_form("Et*3|tt|t|ttL")
    megatron = PipelineParallelLayerLayout(parallel.pipeline_layout, parallel.pp)
    theirs = [
        [megatron.get_layer_id_list(vp_stage=chunk, pp_rank=rank) for chunk in range(2)] for rank in range(2)
    ]
    assert [[list(chunk) for chunk in rank] for rank in split_layers(parallel, 8)] == theirs
    assert chunks_per_rank(parallel) == 2


@pytest.mark.parametrize("mtp_layers", [0, 1, 2])
def test_what_the_rules_let_pass_does_not_fail_in_megatron(mtp_layers):
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    letters = ["tt" + "m" * held + "|" * bars for held in range(4) for bars in (1, 2)]
    texts = {f"E{''.join(order)}L" for each in letters for order in permutations(each)}
    passed = [text for text in texts if not stage_problems(free_form(text), ANY * 2, mtp_layers)]
    assert len(passed) == 3
    for text in passed:
        PipelineParallelLayerLayout(text, 2).validate_layer_layout(2, mtp_layers or None)


def test_mtp_layers_are_on_the_last_rank():
    assert mtp_rank(Parallel(pp=4), 1) == 3
    assert mtp_rank(free_form("Et|t|t|mL", pp=4), 1) == 3
    assert mtp_rank(Parallel(pp=4), 0) is None


def test_a_sound_free_form_layout_has_no_problem():
    assert list(stage_problems(free_form("Ett|t*2L"), ANY * 4)) == []
    assert list(stage_problems(free_form("Et|t|t|mL", pp=4), ANY * 3, mtp_layers=1)) == []


@pytest.mark.parametrize(
    ("parallel", "key", "message"),
    [
        (free_form("Ett|dL"), "pipeline_layout", "it holds 'd'"),
        (free_form("Ett|tL"), "pipeline_layout", "3 × t, but the model has 4 × layer"),
        (free_form("|Ett|tt|L"), "pipeline_layout", "the embedding is not first"),
        (free_form("Ett|Ltt"), "pipeline_layout", "the loss not last"),
        (free_form("Ett|t|tL"), "pipeline_layout", "pp 2 does not divide its 3 stages"),
        (free_form("Et|t|t|tL", vpp=4), "vpp", "4 stages, 2 for each of 2 ranks"),
        (free_form("Etm|tttL"), "pipeline_layout", "1 × m, but the model has 0 × MTP layer"),
        (free_form("Etm|tttL"), "pipeline_layout", "an MTP layer comes before a layer"),
        (free_form("Et|t|ttm|L"), "pipeline_layout", "not in the last stage"),
        (free_form("EttttL", pp=1), "pipeline_layout", "only one pipeline stage"),
        (Parallel(pp=8), "pp", "4 of 4 layers are left for 8 equal stages"),
    ],
)
def test_stages_that_cannot_be_built_are_refused(parallel, key, message):
    found = [
        problem.message for problem in stage_problems(parallel, ANY * 4) if problem.place == f"parallel.{key}"
    ]
    assert any(message in text for text in found)
