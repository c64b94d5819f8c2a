"""Pipeline stages that cost more nearly the same, at the sizes that a recipe asks for.

All ranks wait for the dearest one: cuts are compared by it.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate, islice, pairwise
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from rlcore.config.schema import Parallel, Recipe
from rlcore.errors import RlcoreError
from rlcore.layout.cuts import best_cuts, with_cut
from rlcore.layout.model import Placeable, Placed, flops_after_layers
from rlcore.layout.splits import Split, legal_splits, with_split
from rlcore.layout.stages import with_chunks_named

if TYPE_CHECKING:
    from rlcore.models.spec import ModelSpec

_BY_ENDS = 3
# The best cuts of either sort that are tried: plugins may refuse some.
_TRIES = 16
# What a much better layout costs of another one.
_MUCH = 0.9


class Balanced(NamedTuple):
    """A layout, and what its dearest pipeline rank costs as a multiple of the mean."""

    parallel: Parallel
    dearest: float


def balanced(recipe: Recipe, model: Placeable, than: Placed | None = None) -> list[Balanced]:
    """Return the best balanced layouts of the recipe's sizes that break no rule, the best first.

    They are the three best by the sizes of the ends and the best free-form one, no two alike in their cost to
    two places; if a layout is given, only those that are much better. One stage leaves nothing to choose.
    """
    if recipe.parallel.pp == 1:
        return []
    recipe = recipe.model_copy(update={"parallel": with_chunks_named(recipe.parallel)})
    by_ends = _placed(recipe, model, islice(_cut_by_ends(recipe, model.spec), _TRIES))
    free = _placed(recipe, model, freely_cut(recipe, model.spec, _TRIES))
    found = [*islice(by_ends, _BY_ENDS), *islice(free, 1)]
    differing = {round(each.dearest, 2): each for each in reversed(found)}
    most = _MUCH * max(than.relative_costs(_length(recipe))) if than else inf
    return sorted((each for each in differing.values() if each.dearest <= most), key=lambda each: each.dearest)


def freely_cut(recipe: Recipe, spec: "ModelSpec", limit: int) -> Iterator[Parallel]:
    """Yield the best balanced free-form layouts, by what layers cost for responses of full length."""
    parallel = recipe.parallel
    chunks = parallel.pp * (parallel.vpp or 1)
    costs, after = _costs(recipe, spec)
    for cut in best_cuts(costs, spec.stage_starts, chunks, last=after, limit=limit):
        yield with_cut(parallel, cut, recipe.mtp.num_layers)


def _cut_by_ends(recipe: Recipe, spec: "ModelSpec") -> Iterator[Parallel]:
    """Yield the layouts that the sizes of the ends say, the best balanced first."""
    parallel = recipe.parallel
    pp, vpp = parallel.pp, parallel.vpp or 1
    costs, after = _costs(recipe, spec)
    until = list(accumulate(costs, initial=0))

    def dearest(split: Split) -> int:
        ends = list(accumulate(split.chunks(pp, vpp), initial=0))
        chunks = [until[end] - until[start] for start, end in pairwise(ends)]
        chunks[-1] += after
        return max(sum(chunks[rank::pp]) for rank in range(pp))

    splits = sorted(legal_splits(spec.stage_starts, pp, vpp), key=dearest)
    return (with_split(parallel, split) for split in splits)


def _costs(recipe: Recipe, spec: "ModelSpec") -> tuple[tuple[int, ...], int]:
    """FLOPs of each layer, and of what follows the last, for a response of full length."""
    length = _length(recipe)
    after = flops_after_layers(spec, recipe.mtp.num_layers, length)
    return tuple(round(layer.flops(length)) for layer in spec.layers), round(after)


def _placed(recipe: Recipe, model: Placeable, layouts: Iterable[Parallel]) -> Iterator[Balanced]:
    for parallel in layouts:
        try:
            placed = model.place(recipe.model_copy(update={"parallel": parallel}))
        except RlcoreError:
            continue
        yield Balanced(parallel, max(placed.relative_costs(_length(recipe))))


def _length(recipe: Recipe) -> int:
    return recipe.rollout.max_response_tokens
