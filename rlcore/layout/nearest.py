"""The layouts next to one that does not work: the same GPUs, sizes near those asked for, every rule kept."""

from collections.abc import Iterator
from itertools import islice, product
from math import log2
from shlex import quote

from rlcore.config.schema import Parallel, Recipe
from rlcore.errors import RlcoreError
from rlcore.layout.balance import freely_cut
from rlcore.layout.model import Placeable
from rlcore.layout.plan import expert_sizes, size_problems
from rlcore.layout.rules import model_problems
from rlcore.layout.splits import nearest_splits, with_split
from rlcore.layout.stages import with_chunks_named

_FACTOR = 4
# Sizes that fit the ranks and the model, of which the stages are tried: beyond them nothing is near any more.
_TRIES = 1000
# Splits of one size that are tried: plugins refuse some, and the sixteenth is no nearer than another size.
_SPLITS = 16
_AXES = ("tp", "pp", "cp", "ep")


def nearest(recipe: Recipe, model: Placeable, limit: int = 3) -> list[Parallel]:
    """Return up to `limit` layouts that break no rule, nearest first, each of other sizes than the ones before.

    Near are sizes a small factor from those asked for, then stages that differ by few layers.
    """
    recipe = recipe.model_copy(update={"parallel": with_chunks_named(recipe.parallel)})
    found = (next(_working(recipe, model, sizes), None) for sizes in islice(_sizes(recipe, model), _TRIES))
    return list(islice((parallel for parallel in found if parallel), limit))


def changes(asked: Parallel, found: Parallel) -> list[str]:
    """Say how to get from one to the other, as arguments of the command line."""
    changed = {name: value for name, value in found.model_dump().items() if value != getattr(asked, name)}
    words = (f"parallel.{name}={'null' if value is None else value}" for name, value in changed.items())
    return [f"--set {quote(word)}" for word in words]


def _sizes(recipe: Recipe, model: Placeable) -> Iterator[Parallel]:
    """Yield sizes that fit ranks and model, nearest first; equally near ones by how small a rank's share is."""
    asked = recipe.parallel
    gpus = recipe.cluster.nodes * recipe.cluster.gpus_per_node
    axes = [_near(getattr(asked, axis), gpus) for axis in _AXES]
    loose = [_once(asked.etp, None), _near_chunks(asked.vpp), _once(asked.dp, None)]
    names = (*_AXES, "etp", "vpp", "dp")
    options = (dict(zip(names, values, strict=True)) for values in product(*axes, *loose))
    candidates = [asked.model_copy(update=option) for option in options]
    seen = set()
    for parallel in sorted(candidates, key=lambda one: (_distance(asked, one), -one.tp * one.pp * one.cp)):
        sizes = (parallel.tp, parallel.pp, parallel.cp, *expert_sizes(parallel), parallel.vpp)
        changed = recipe.model_copy(update={"parallel": parallel})
        if sizes in seen or any(size_problems(changed)) or any(model_problems(parallel, model.spec)):
            continue
        seen.add(sizes)
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
    for parallel in _stages(recipe.model_copy(update={"parallel": sizes}), model):
        try:
            model.place(recipe.model_copy(update={"parallel": parallel}))
        except RlcoreError:
            continue
        yield parallel


def _stages(recipe: Recipe, model: Placeable) -> Iterator[Parallel]:
    """Yield the ways to cut the layers: as asked for, then by the sizes of the ends, then freely."""
    asked = recipe.parallel
    if asked.pipeline_layout:
        yield asked
    if asked.pp == 1:
        ends = ("first_stage_layers", "last_stage_layers", "pipeline_layout")
        yield asked.model_copy(update=dict.fromkeys(ends))
        return
    splits = nearest_splits(asked, model.spec.stage_starts, asked.pp, asked.vpp or 1)
    yield from (with_split(asked, split) for split in splits[:_SPLITS])
    yield from freely_cut(recipe, model.spec, limit=1)
