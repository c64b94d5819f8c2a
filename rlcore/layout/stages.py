"""Which layers each pipeline stage holds: equal shares, other sizes at the ends, or a free-form layout.

A pipeline rank holds one chunk of layers, or several (virtual stages) that the forward pass visits in turns.
"""

import re
from collections.abc import Iterator

from rlcore.config.schema import Parallel
from rlcore.errors import Problem

Stages = tuple[tuple[tuple[int, ...], ...], ...]

_LETTERS = {"E": "embedding", "t": "layer", "m": "MTP layer", "L": "loss"}
# `(...)*n` is written out before `x*n`: what is repeated may repeat in turn.
_REPETITIONS = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))
_PLACE = "parallel.pipeline_layout"


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
    first, last, middle = _ends(parallel)
    share = (layers - first - last) // middle if middle else 0
    ranks = [first or share, *[share] * (parallel.pp - 2), last or share] if parallel.pp > 1 else [layers]
    chunks = parallel.vpp or 1
    return [size // chunks for size in ranks] * chunks


def _ends(parallel: Parallel) -> tuple[int, int, int]:
    """Layers given to the first and the last stage (0: like the others), and how many stages are left."""
    first, last = parallel.first_stage_layers or 0, parallel.last_stage_layers or 0
    return first, last, parallel.pp - bool(first) - bool(last)


def stage_problems(parallel: Parallel, layers: int, mtp_layers: int = 0) -> Iterator[Problem]:
    """Check that every layer has one place in the pipeline, and that no key says twice or in vain where."""
    ends = [name for name in ("first_stage_layers", "last_stage_layers") if getattr(parallel, name) is not None]
    if parallel.pp == 1:
        for name in (*ends, "vpp", "pipeline_layout"):
            if getattr(parallel, name) not in (None, 1) or name in ends:
                message = "there is only one pipeline stage"
                yield Problem(f"parallel.{name}", message, "leave it out, or pp above 1")
    elif parallel.pipeline_layout is not None:
        for name in ends:
            yield Problem(f"parallel.{name}", "pipeline_layout already says it", "keep one of the two")
        yield from _free_form_problems(parallel, layers, mtp_layers)
    else:
        yield from _share_problems(parallel, layers)


def _share_problems(parallel: Parallel, layers: int) -> Iterator[Problem]:
    """Check that layers split evenly over pipeline ranks and their chunks."""
    first, last, middle = _ends(parallel)
    rest, chunks = layers - first - last, parallel.vpp or 1
    if rest < 0 or (rest and not middle) or (middle and (rest % middle or not rest)):
        message = f"{rest} of {layers} layers are left for {middle} equal stages"
        yield Problem("parallel.pp", message, _uneven(layers, parallel.pp))
        return
    sizes = {size for size in (first, last, rest // middle if middle else 0) if size}
    if any(size % chunks for size in sizes):
        message = f"{chunks} chunks do not divide stages of {' and '.join(map(str, sorted(sizes)))} layers"
        fitting = [str(one) for one in range(1, min(sizes) + 1) if not any(size % one for size in sizes)]
        yield Problem("parallel.vpp", message, f"one of {', '.join(fitting)}")


def _uneven(layers: int, stages: int) -> str:
    """Sizes of first and last stage that leave equal ones between."""
    if layers < stages:
        return f"pp: at most {layers}"
    if layers % stages == 0:
        return "leave first_stage_layers and last_stage_layers out"
    each = layers // stages
    return f"last_stage_layers: {layers - each * (stages - 1)}, which leaves {each} for each other stage"


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
