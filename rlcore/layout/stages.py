"""Which layers each pipeline stage holds: equal shares, other sizes at the ends, or a free-form layout.

A pipeline rank holds one chunk of layers, or several (virtual stages) that the forward pass visits in turns.
"""

import re

from rlcore.config.schema import Parallel
from rlcore.layout.splits import Split

Stages = tuple[tuple[tuple[int, ...], ...], ...]

# `(...)*n` is written out before `x*n`: what is repeated may repeat in turn.
_REPETITIONS = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))


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


def with_chunks_named(parallel: Parallel) -> Parallel:
    """Set `vpp` where a free-form layout alone says it, for layouts that are to have as many chunks."""
    chunks = chunks_per_rank(parallel)
    return parallel.model_copy(update={"vpp": chunks}) if parallel.vpp is None and chunks > 1 else parallel


def split_layers(parallel: Parallel, layers: int) -> Stages:
    """Give each pipeline rank its layers, chunk by chunk; `stage_rules` says where there is no way."""
    sizes = iter(chunk_sizes(parallel, layers))
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


def chunk_sizes(parallel: Parallel, layers: int) -> list[int]:
    """Layers of every chunk in the order of the forward pass."""
    if parallel.pipeline_layout is not None:
        return [chunk.count("t") for chunk in written_out(parallel.pipeline_layout)]
    if parallel.pp == 1:
        return [layers]
    first, last, middle = ends_of(parallel)
    share = (layers - first - last) // middle if middle else 0
    return Split(first or share, share, last or share).chunks(parallel.pp, parallel.vpp or 1)


def ends_of(parallel: Parallel) -> tuple[int, int, int]:
    """Layers given to the first and the last stage (0: like the others), and how many stages are left."""
    first, last = parallel.first_stage_layers or 0, parallel.last_stage_layers or 0
    return first, last, parallel.pp - bool(first) - bool(last)
