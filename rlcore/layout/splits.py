"""Ways to cut layers into stages by the sizes of both ends, where not every layer may start a stage."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from rlcore.config.schema import Parallel

# Shares of the other stages that an end may hold; all wait for the slowest.
_WORST_END = 3


class Split(NamedTuple):
    """Layers of the first pipeline rank, of each middle one (0 if there is none), and of the last."""

    first: int
    middle: int
    last: int

    def chunks(self, pp: int, vpp: int = 1) -> list[int]:
        """Layers of every chunk, in the order of the forward pass: each rank has `vpp` equal ones."""
        ranks = [self.first, *[self.middle] * (pp - 2), self.last]
        return [size // vpp for size in ranks] * vpp


def misplaced(chunks: Iterable[int], starts: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield the chunks that begin with a layer that may not start one: their number, and that layer (from 0).

    `chunks` are numbers of layers. The first layer has no choice.
    """
    layer = 0
    for chunk, size in enumerate(chunks):
        if size and layer and not starts[layer]:
            yield chunk, layer
        layer += size


@lru_cache(maxsize=64)
def legal_splits(starts: tuple[bool, ...], pp: int, vpp: int = 1) -> tuple[Split, ...]:
    """Return every split over `pp` ranks, at least 2, of `vpp` chunks each, that start where they may.

    `starts` says of each layer whether it may start a stage.
    """
    layers, middles = len(starts), pp - 2
    shares = range(vpp, layers // middles + 1, vpp) if middles else [0]
    splits = (
        Split(first, share, layers - middles * share - first)
        for share in shares
        for first in range(vpp, layers - middles * share, vpp)
    )
    return tuple(
        split for split in splits if split.last % vpp == 0 and not any(misplaced(split.chunks(pp, vpp), starts))
    )


def nearest_splits(asked: Parallel, starts: Sequence[bool], pp: int, vpp: int = 1) -> list[Split]:
    """Return the legal splits, nearest to those asked for first; none with ends that all others would wait for.

    A near split moves few layers to or from the ends; an end that was not asked for should be like other ranks.
    """

    def distance(split: Split) -> tuple[int, int, Split]:
        named = asked.first_stage_layers or asked.last_stage_layers or split.last
        share = split.middle or len(starts) - named
        first, last = asked.first_stage_layers or share, asked.last_stage_layers or share
        return abs(split.first - first) + abs(split.last - last), max(split), split

    fair = (
        split
        for split in legal_splits(tuple(starts), pp, vpp)
        if max(split) <= _WORST_END * (split.middle or min(split.first, split.last))
    )
    return sorted(fair, key=distance)


def with_split(parallel: Parallel, split: Split) -> Parallel:
    """Ask for a split: its ends are named where they are not like the other ranks; of two ranks, one is."""
    share = split.middle or (split.first if _names_last_alone(parallel) else split.last)
    ends = {"first_stage_layers": split.first, "last_stage_layers": split.last}
    named = {name: layers if layers != share else None for name, layers in ends.items()}
    return parallel.model_copy(update={**named, "pipeline_layout": None})


def _names_last_alone(parallel: Parallel) -> bool:
    return parallel.last_stage_layers is not None and parallel.first_stage_layers is None
