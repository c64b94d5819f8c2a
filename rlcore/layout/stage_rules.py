"""What a cut of the layers into pipeline stages must keep to, and which ones to take instead."""

from collections.abc import Iterator, Sequence

from rlcore.config.schema import Parallel
from rlcore.errors import Problem
from rlcore.layout.cuts import best_cuts, with_cut
from rlcore.layout.splits import misplaced, nearest_splits, with_split
from rlcore.layout.stages import chunk_sizes, chunks_per_rank, ends_of, written_out

_LETTERS = {"E": "embedding", "t": "layer", "m": "MTP layer", "L": "loss"}
_PLACE = "parallel.pipeline_layout"
_SHOWN = 3


def stage_problems(parallel: Parallel, starts: Sequence[bool], mtp_layers: int = 0) -> list[Problem]:
    """Return what keeps layers from one place each in the pipeline, or stages from starting where they do.

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
    first, last, middle = ends_of(parallel)
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
        chunks = chunk_sizes(parallel.model_copy(update={"vpp": vpp}), len(starts))
        if not any(size % vpp for size in sizes) and not any(misplaced(chunks, starts)):
            yield vpp


def _start_problems(parallel: Parallel, starts: Sequence[bool], mtp_layers: int) -> Iterator[Problem]:
    """Check that no stage starts with a layer that needs one of the stage before."""
    found = list(misplaced(chunk_sizes(parallel, len(starts)), starts))
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
        offered = with_split(parallel, near[0])
        share = near[0].middle or len(starts) - (offered.first_stage_layers or offered.last_stage_layers or 0)
        return _difference(parallel, offered, f", which leaves {share} for each other stage")
    # An output layer and an MTP layer cost about as much as a layer each.
    cut = best_cuts((1,) * len(starts), tuple(starts), pp * vpp, last=1 + 2 * mtp_layers)[0]
    return _difference(parallel, with_cut(parallel, cut, mtp_layers))


def _difference(asked: Parallel, offered: Parallel, effect: str = "") -> str:
    """Say which keys to write, to what effect, and which to leave out."""
    keys = ("first_stage_layers", "last_stage_layers", "pipeline_layout")
    written = [f"{key}: {getattr(offered, key)}" for key in keys if getattr(offered, key)]
    dropped = [key for key in keys if getattr(asked, key) and not getattr(offered, key)]
    leave = f"leave {' and '.join(dropped)} out" if dropped else ""
    return "; ".join(filter(None, [f"{', '.join(written)}{effect}" if written else "", leave]))


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
