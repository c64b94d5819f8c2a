"""Which layers each pipeline stage holds: equal shares, other sizes at the ends, or a free-form layout.

A pipeline rank holds one chunk of layers, or several (virtual stages) that the forward pass visits in turns.
"""

import re
from collections.abc import Iterator, Sequence

from rlcore.config.schema import Parallel
from rlcore.errors import Problem
from rlcore.layout.cuts import best_cuts, free_form
from rlcore.layout.splits import Split, misplaced, nearest_splits, with_split

Stages = tuple[tuple[tuple[int, ...], ...], ...]

_LETTERS = {"E": "embedding", "t": "layer", "m": "MTP layer", "L": "loss"}
# `(...)*n` is written out before `x*n`: what is repeated may repeat in turn.
_REPETITIONS = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))
_PLACE = "parallel.pipeline_layout"
_SHOWN = 3


def written_out(pipeline_layout: str) -> list[str]:
    """Return the letters of each chunk, in the order of the forward pass: `Et|(tt|)*2,L` is Et, tt, tt, L.

    The syntax is that of Megatron's PipelineParallelLayerLayout; letters are not checked here.
    """
    text = pipeline_layout.replace(",", "")
    for repetition in _REPETITIONS:
        text = repetition.sub(lambda found: found[1] * int(found[2]), text)
    return text.split("|")


def chunks_per_rank(parallel: Parallel) -> int:
    """Virtual stages of each pipeline rank, by `vpp` or the free-form layout."""
    if parallel.pipeline_layout is not None:
        return len(written_out(parallel.pipeline_layout)) // parallel.pp
    return parallel.vpp or 1


def split_layers(parallel: Parallel, layers: int) -> Stages:
    """Give each pipeline rank its layers, chunk by chunk; `stage_problems` says where there is no way."""
    sizes = iter(_chunk_sizes(parallel, layers))
    stages: list[list[tuple[int, ...]]] = [[] for _ in range(parallel.pp)]
    start = 0
    for _ in range(chunks_per_rank(parallel)):
        for stage in stages:
            size = next(sizes)
            stage.append(tuple(range(start, start + size)))
            start += size
    return tuple(tuple(stage) for stage in stages)


def mtp_rank(parallel: Parallel, mtp_layers: int) -> int | None:
    """Return the pipeline rank that has the MTP layers, the last one; None without any."""
    return parallel.pp - 1 if mtp_layers else None


def _chunk_sizes(parallel: Parallel, layers: int) -> list[int]:
    """Layers of every chunk in the order of the forward pass."""
    if parallel.pipeline_layout is not None:
        return [chunk.count("t") for chunk in written_out(parallel.pipeline_layout)]
    if parallel.pp == 1:
        return [layers]
    first, last, middle = _ends(parallel)
    share = (layers - first - last) // middle if middle else 0
    return Split(first or share, share, last or share).chunks(parallel.pp, parallel.vpp or 1)


def _ends(parallel: Parallel) -> tuple[int, int, int]:
    """Layers given to the first and the last stage (0: like the others), and how many stages are left."""
    first, last = parallel.first_stage_layers or 0, parallel.last_stage_layers or 0
    return first, last, parallel.pp - bool(first) - bool(last)


def stage_problems(parallel: Parallel, starts: Sequence[bool], mtp_layers: int = 0) -> list[Problem]:
    """Check that every layer has one place in the pipeline, no key says twice or in vain where, and stages may
    start where they do.

    `starts` says of each layer whether it may start a stage.
    """
    return [*_key_problems(parallel, starts, mtp_layers)] or [*_start_problems(parallel, starts, mtp_layers)]


def _key_problems(parallel: Parallel, starts: Sequence[bool], mtp_layers: int) -> Iterator[Problem]:
    ends = [name for name in ("first_stage_layers", "last_stage_layers") if getattr(parallel, name) is not None]
    if parallel.pp == 1:
        for name in (*ends, "vpp", "pipeline_layout"):
            if getattr(parallel, name) not in (None, 1) or name in ends:
                message = "there is only one pipeline stage"
                yield Problem(f"parallel.{name}", message, "leave it out, or pp above 1")
    elif parallel.pipeline_layout is not None:
        for name in ends:
            yield Problem(f"parallel.{name}", "pipeline_layout already says it", "keep one of the two")
        yield from _free_form_problems(parallel, len(starts), mtp_layers)
    else:
        yield from _share_problems(parallel, starts, mtp_layers)


def _share_problems(parallel: Parallel, starts: Sequence[bool], mtp_layers: int) -> Iterator[Problem]:
    """Check that layers split evenly over pipeline ranks and their chunks."""
    layers, chunks = len(starts), parallel.vpp or 1
    first, last, middle = _ends(parallel)
    rest = layers - first - last
    if rest < 0 or (rest and not middle) or (middle and (rest % middle or not rest)):
        message = f"{rest} of {layers} layers are left for {middle} equal stages"
        yield Problem("parallel.pp", message, _legal_cut(parallel, starts, mtp_layers))
        return
    sizes = {size for size in (first, last, rest // middle if middle else 0) if size}
    if any(size % chunks for size in sizes):
        message = f"{chunks} chunks do not divide stages of {' and '.join(map(str, sorted(sizes)))} layers"
        fitting = [str(one) for one in _fitting_chunks(parallel, starts, sizes)]
        remedy = f"one of {', '.join(fitting)}" if fitting else _legal_cut(parallel, starts, mtp_layers)
        yield Problem("parallel.vpp", message, remedy)
    elif chunks > 1 and not middle:
        message = "Megatron divides by zero where both ends of two ranks with several chunks are set"
        yield Problem("parallel.last_stage_layers", message, "leave it out")


def _fitting_chunks(parallel: Parallel, starts: Sequence[bool], sizes: set[int]) -> Iterator[int]:
    """Yield the values of `vpp` that divide the sizes of all stages and let chunks start where they may."""
    for vpp in range(1, min(sizes) + 1):
        chunks = _chunk_sizes(parallel.model_copy(update={"vpp": vpp}), len(starts))
        if not any(size % vpp for size in sizes) and not any(misplaced(chunks, starts)):
            yield vpp


def _start_problems(parallel: Parallel, starts: Sequence[bool], mtp_layers: int) -> Iterator[Problem]:
    """Check that no stage starts with a layer that needs one of the stage before."""
    found = list(misplaced(_chunk_sizes(parallel, len(starts)), starts))
    if not found:
        return
    chunk, layer = found[0]
    source = max(index for index in range(layer) if starts[index] or not index)
    message = f"{_stage(parallel, chunk)} starts at layer {layer}, which needs layer {source} on the same stage"
    others = [f"{_stage(parallel, other)} (layer {start})" for other, start in found[1:]]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        message += f"; so do {', '.join(others[:_SHOWN])}{more}"
    if parallel.pipeline_layout is None:
        yield Problem("parallel.pp", message, _legal_cut(parallel, starts, mtp_layers))
    else:
        following = [index for index in range(layer, len(starts)) if starts[index]]
        yield Problem(_PLACE, message, f"start it at layer {' or '.join(map(str, [source, *following[:1]]))}")


def _stage(parallel: Parallel, chunk: int) -> str:
    stage = f"stage {chunk % parallel.pp}"
    return f"chunk {chunk // parallel.pp} of {stage}" if chunks_per_rank(parallel) > 1 else stage


def _legal_cut(parallel: Parallel, starts: Sequence[bool], mtp_layers: int) -> str:
    """Say how to cut the layers: the nearest way by the sizes of the ends, else stages of any sizes."""
    pp, vpp = parallel.pp, parallel.vpp or 1
    room = 1 + sum(starts[1:])
    if room < pp * vpp:
        return f"{'pp × vpp' if vpp > 1 else 'pp'}: at most {room}"
    if near := nearest_splits(parallel, starts, pp, vpp):
        return _in_words(with_split(parallel, near[0]), near[0])
    cut = best_cuts((1,) * len(starts), tuple(starts), pp * vpp)[0]
    return f"pipeline_layout: {free_form(cut, mtp_layers)}"


def _in_words(parallel: Parallel, split: Split) -> str:
    ends = {"first_stage_layers": parallel.first_stage_layers, "last_stage_layers": parallel.last_stage_layers}
    named = ", ".join(f"{name}: {layers}" for name, layers in ends.items() if layers)
    if not named:
        return "leave first_stage_layers and last_stage_layers out"
    share = split.middle or (split.last if parallel.first_stage_layers else split.first)
    return f"{named}, which leaves {share} for each other stage"


def _free_form_problems(parallel: Parallel, layers: int, mtp_layers: int) -> Iterator[Problem]:
    """Check the letters of a free-form layout, how often they come, and how its chunks go round the ranks."""
    chunks = written_out(parallel.pipeline_layout or "")
    letters = "".join(chunks)
    if unknown := sorted(set(letters) - set(_LETTERS)):
        known = ", ".join(f"{letter} ({meaning})" for letter, meaning in _LETTERS.items())
        yield Problem(_PLACE, f"it holds {' '.join(map(repr, unknown))}", f"{known}, | and *")
        return
    wanted = {"E": 1, "t": layers, "m": mtp_layers, "L": 1}
    for letter, count in wanted.items():
        if letters.count(letter) != count:
            message = f"{letters.count(letter)} × {letter}, but the model has {count} × {_LETTERS[letter]}"
            yield Problem(_PLACE, message, f"{count} × {letter}")
    if not (chunks[0].startswith("E") and chunks[-1].endswith("L")):
        message = "the embedding is not first, or the loss not last"
        yield Problem(_PLACE, message, "E at the beginning, L at the end")
    yield from _chunk_problems(parallel, chunks)
    yield from _mtp_problems(chunks)


def _chunk_problems(parallel: Parallel, chunks: list[str]) -> Iterator[Problem]:
    count, pp = len(chunks), parallel.pp
    if count % pp:
        yield Problem(_PLACE, f"pp {pp} does not divide its {count} stages", f"{pp} or {2 * pp} stages")
    elif parallel.vpp is not None and parallel.vpp != count // pp:
        message = f"pipeline_layout has {count} stages, {count // pp} for each of {pp} ranks"
        yield Problem("parallel.vpp", message, f"vpp: {count // pp}, or leave it out")


def _mtp_problems(chunks: list[str]) -> Iterator[Problem]:
    """MTP layers lead from final hidden states to the output layer: after all layers, in the last chunk."""
    letters = "".join(chunks)
    if "m" not in letters:
        return
    if letters.rfind("t") > letters.find("m"):
        yield Problem(_PLACE, "an MTP layer comes before a layer", "m after every t")
    elif any("m" in chunk for chunk in chunks[:-1]):
        yield Problem(_PLACE, "an MTP layer is not in the last stage, where its loss is", "m beside L")
