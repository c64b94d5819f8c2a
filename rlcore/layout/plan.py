"""How a model is spread over ranks: parallel sizes, and which layers each pipeline stage holds.

Arithmetic only, in the order of ranks that Megatron uses (tp, cp, ep, dp, pp). Which splits a model allows
beyond that is for its plugin's layout validator.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm

from rlcore.config.schema import Parallel, Recipe
from rlcore.errors import Problem, raise_if_any

Stages = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Parallel sizes of a run. `stages[p][v]` holds the layers (from 0) of pipeline rank p, chunk v."""

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1
    stages: Stages

    @property
    def dp(self) -> int:
        """Data parallel size of everything but experts."""
        return self.world_size // (self.tp * self.pp * self.cp)

    @property
    def expert_dp(self) -> int:
        """Data parallel size of experts."""
        return self.world_size // (self.etp * self.ep * self.pp)

    @property
    def stage_starts(self) -> tuple[int, ...]:
        """First layer of every chunk, in the order of the forward pass; empty chunks are left out."""
        chunks = (self.stages[p][v] for v in range(self.vpp) for p in range(self.pp))
        return tuple(chunk[0] for chunk in chunks if chunk)


def layout_of(recipe: Recipe, layers: int) -> Layout:
    """Lay a model of so many layers out as the recipe says; raises RlcoreError with every rule it breaks.

    Places of problems are keys of the recipe. On the CPU the smallest world that holds the layout is taken.
    """
    parallel, cluster = recipe.parallel, recipe.cluster
    sizes = expert_sizes(parallel)
    world_size = cluster.nodes * cluster.gpus_per_node or _cpu_world_size(parallel)
    raise_if_any(size_problems(parallel, world_size, on_cpu=not cluster.gpus_per_node))
    raise_if_any(_stage_problems(parallel, layers))
    return Layout(
        world_size=world_size,
        tp=parallel.tp,
        pp=parallel.pp,
        cp=parallel.cp,
        ep=sizes[0],
        etp=sizes[1],
        vpp=parallel.vpp or 1,
        stages=split_layers(parallel, layers),
    )


def expert_sizes(parallel: Parallel) -> tuple[int, int]:
    """Return (ep, etp): without expert parallelism experts are split like all else, with it they are whole."""
    return parallel.ep, parallel.etp or (parallel.tp if parallel.ep == 1 else 1)


def _cpu_world_size(parallel: Parallel) -> int:
    """Ranks of a machine without GPUs: as many as `dp` asks for, else the fewest that hold the layout."""
    ep, etp = expert_sizes(parallel)
    dense = parallel.tp * parallel.pp * parallel.cp
    return dense * parallel.dp if parallel.dp else lcm(dense, ep * etp * parallel.pp)


def size_problems(parallel: Parallel, world_size: int, *, on_cpu: bool) -> Iterator[Problem]:
    """Check parallel sizes against each other and against the number of ranks."""
    ep, etp = expert_sizes(parallel)
    dense, sparse = parallel.tp * parallel.pp * parallel.cp, etp * ep * parallel.pp
    if world_size % dense:
        message = f"tp × pp × cp = {dense} does not divide {world_size} GPUs"
        yield Problem("parallel", message, _counts(world_size, dense))
    elif parallel.dp is not None and parallel.dp != world_size // dense:
        message = f"dp {parallel.dp} × {dense} (tp × pp × cp) is not the {world_size} GPUs of the cluster"
        yield Problem("parallel.dp", message, f"dp: {world_size // dense}, or leave it out")
    if ep > 1 and world_size % sparse:
        message = f"etp × ep × pp = {sparse} does not divide {world_size} GPUs"
        yield Problem("parallel.ep", message, _counts(world_size, sparse))
    if ep == 1 and etp != parallel.tp:
        message = f"etp {etp} with tp {parallel.tp} and ep 1 gives Megatron's experts wrong gradients"
        yield Problem("parallel.etp", message, "leave etp out, or ep above 1")
    if on_cpu and ep > 1 and etp > 1:
        yield Problem("parallel.etp", "gloo cannot split experts that are spread over ranks", "etp: 1")


def _counts(world_size: int, product: int) -> str:
    """The numbers of GPUs next to the given one that a product divides."""
    below = world_size // product * product
    return f"{below} or {below + product} GPUs" if below else f"{product} GPUs"


def _stage_problems(parallel: Parallel, layers: int) -> Iterator[Problem]:
    """Check that layers split evenly over pipeline ranks and their chunks."""
    first, last, chunks = parallel.first_stage_layers, parallel.last_stage_layers, parallel.vpp or 1
    middle = parallel.pp - (first is not None) - (last is not None)
    if parallel.pp == 1:
        for name in ("first_stage_layers", "last_stage_layers", "vpp"):
            if getattr(parallel, name) is not None:
                yield Problem(
                    f"parallel.{name}", "there is only one pipeline stage", "leave it out, or pp above 1"
                )
        return
    if parallel.pipeline_layout is not None:
        for name in ("first_stage_layers", "last_stage_layers"):
            if getattr(parallel, name) is not None:
                yield Problem(f"parallel.{name}", "pipeline_layout already says it", "keep one of the two")
        return
    rest = layers - (first or 0) - (last or 0)
    if rest < 0 or (rest and not middle) or (middle and (rest % middle or not rest)):
        message = f"{rest} of {layers} layers are left for {middle} equal stages"
        yield Problem("parallel.pp", message, _uneven(layers, parallel.pp))
    elif any(size % chunks for size in (first or 0, last or 0, rest // middle if middle else 0)):
        yield Problem(
            "parallel.vpp", f"{chunks} chunks do not divide the layers of each stage", "a divisor of them"
        )


def _uneven(layers: int, stages: int) -> str:
    """Sizes of first and last stage that leave equal ones between."""
    if layers % stages == 0:
        return "leave first_stage_layers and last_stage_layers out"
    each = layers // stages
    return f"last_stage_layers: {layers - each * (stages - 1)}, which leaves {each} for each other stage"


def split_layers(parallel: Parallel, layers: int) -> Stages:
    """Give each pipeline rank its layers: equal shares but for first and last, chunk by chunk.

    A free-form `pipeline_layout` is Megatron's to read: its stages are empty here.
    """
    chunks = parallel.vpp or 1
    if parallel.pipeline_layout is not None:
        return ((),) * parallel.pp
    first, last = parallel.first_stage_layers, parallel.last_stage_layers
    middle = parallel.pp - (first is not None) - (last is not None)
    share = (layers - (first or 0) - (last or 0)) // middle if middle else 0
    sizes = [first or share, *[share] * (parallel.pp - 2), last or share] if parallel.pp > 1 else [layers]
    stages: list[list[tuple[int, ...]]] = [[] for _ in sizes]
    start = 0
    for _ in range(chunks):
        for stage, size in zip(stages, sizes, strict=True):
            stage.append(tuple(range(start, start + size // chunks)))
            start += size // chunks
    return tuple(tuple(stage) for stage in stages)
