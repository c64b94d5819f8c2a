"""The layouts next to one that does not work: the same GPUs, sizes near those asked for, every rule kept."""

from collections.abc import Iterator
from itertools import islice, product
from math import log2

from rlcore.config.schema import Parallel, Recipe
from rlcore.errors import RlcoreError
from rlcore.layout.model import Placeable
from rlcore.layout.plan import size_problems
from rlcore.layout.rules import model_problems

_FACTOR = 4
# Sizes that fit the ranks and the model, of which the stages are tried: beyond them nothing is near any more.
_TRIES = 1000
# Shares of the other stages that an offered end may hold; all wait for the slowest.
_WORST_END = 3
_AXES = ("tp", "pp", "cp", "ep")


def nearest(recipe: Recipe, model: Placeable, limit: int = 3) -> list[Parallel]:
    """Return up to `limit` layouts that break no rule, nearest first, each of other sizes than the ones before.

    Near are sizes a small factor from those asked for, then stages that differ by few layers.
    """
    found = (next(_working(recipe, model, sizes), None) for sizes in islice(_sizes(recipe, model), _TRIES))
    return list(islice((parallel for parallel in found if parallel), limit))


def changes(asked: Parallel, found: Parallel) -> list[str]:
    """Say how to get from one to the other, as arguments of the command line."""
    values = found.model_dump()
    return [
        f"--set parallel.{name}={'null' if value is None else value}"
        for name, value in values.items()
        if value != getattr(asked, name)
    ]


def _sizes(recipe: Recipe, model: Placeable) -> Iterator[Parallel]:
    """Yield sizes that fit ranks and model, nearest first; equally near ones by how small a rank's share is."""
    asked = recipe.parallel
    gpus = recipe.cluster.nodes * recipe.cluster.gpus_per_node
    axes = [_near(getattr(asked, axis), gpus) for axis in _AXES]
    loose = [_once(asked.etp, None), _near_chunks(asked.vpp), _once(asked.dp, None)]
    names = (*_AXES, "etp", "vpp", "dp")
    options = (dict(zip(names, values, strict=True)) for values in product(*axes, *loose))
    candidates = [asked.model_copy(update=option) for option in options]
    for parallel in sorted(candidates, key=lambda one: (_distance(asked, one), -one.tp * one.pp * one.cp)):
        changed = recipe.model_copy(update={"parallel": parallel})
        if not any(size_problems(changed)) and not any(model_problems(parallel, model.spec)):
            yield parallel


def _near(asked: int, gpus: int) -> list[int]:
    """Sizes a small factor from one that was asked for, and 1; where there are GPUs, their divisors."""
    if gpus:
        sizes = {size for size in range(1, _FACTOR * asked + 1) if gpus % size == 0 and size * _FACTOR >= asked}
    else:
        sizes = {asked // 2, asked - 1, asked, asked + 1, 2 * asked} - {0}
    return sorted({1} | sizes)


def _near_chunks(asked: int | None) -> list[int | None]:
    if asked is None or asked == 1:
        return [asked]
    return _once(asked, asked - 1 if asked > 2 else None, asked + 1, None)


def _once(*values: int | None) -> list[int | None]:
    return list(dict.fromkeys(values))


def _distance(asked: Parallel, found: Parallel) -> float:
    """Doublings between two layouts' sizes; leaving out a key that only repeats others costs half of one."""
    axes = sum(abs(log2(getattr(found, axis) / getattr(asked, axis))) for axis in _AXES)
    chunks = abs(log2((found.vpp or 1) / (asked.vpp or 1)))
    return axes + chunks / 2 + ((found.etp != asked.etp) + (found.dp != asked.dp)) / 2


def _working(recipe: Recipe, model: Placeable, sizes: Parallel) -> Iterator[Parallel]:
    """Yield the layouts of these sizes that keep every rule, those with stages as asked for first."""
    for parallel in _stages(recipe.parallel, sizes, len(model.spec.layers)):
        try:
            model.place(recipe.model_copy(update={"parallel": parallel}))
        except RlcoreError:
            continue
        yield parallel


def _stages(asked: Parallel, sizes: Parallel, layers: int) -> Iterator[Parallel]:
    """Yield the ways to cut the layers into stages: as asked for, then evenly but for an end or both."""
    if asked.pipeline_layout:
        yield sizes
    first, last = asked.first_stage_layers or 0, asked.last_stage_layers or 0
    cuts = {(first, last), (0, 0), *_uneven(sizes.pp, layers, first, last)}
    for cut in sorted(cuts, key=lambda cut: (abs(cut[0] - first) + abs(cut[1] - last), cut)):
        ends = {"first_stage_layers": cut[0] or None, "last_stage_layers": cut[1] or None}
        yield sizes.model_copy(update={**ends, "pipeline_layout": None})


def _uneven(pp: int, layers: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield layers of first and last stage (0: like the others), one end or none being as asked for."""
    for kept_first, kept_last in ((first, 0), (0, last), (0, 0)):
        others, left = pp - bool(kept_first or kept_last), layers - kept_first - kept_last
        for share in (left // others, -(-left // others)) if others else ():
            rest = left - share * (others - 1)
            if 0 < rest <= _WORST_END * share:
                yield kept_first, kept_last or rest
                yield kept_first or rest, kept_last
