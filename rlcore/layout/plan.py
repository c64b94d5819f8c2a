"""How a model is spread over ranks: parallel sizes and pipeline stages, as a recipe asks for them.

Arithmetic only. What the sizes of a model allow is for `rules`, what its kind allows for its plugin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import lcm

from rlcore.config.schema import Parallel, Recipe
from rlcore.errors import Problem, raise_if_any
from rlcore.layout.stage_rules import stage_problems
from rlcore.layout.stages import Stages, chunks_per_rank, mtp_rank, split_layers


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Parallel sizes of a run. `stages[p][v]` holds the layers (from 0) of pipeline rank p, chunk v.

    The embedding is before the first chunk and the loss after the last; `mtp_rank` is the pipeline rank whose
    last chunk ends with the `mtp_layers` MTP layers.
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1
    stages: Stages
    mtp_rank: int | None = None
    mtp_layers: int = 0

    @property
    def dp(self) -> int:
        """Data parallel size of everything but experts."""
        return self.world_size // (self.tp * self.pp * self.cp)

    @property
    def expert_dp(self) -> int:
        """Data parallel size of experts."""
        return self.world_size // (self.etp * self.ep * self.pp)


def layout_of(recipe: Recipe, starts: Sequence[bool]) -> Layout:
    """Lay out, as the recipe says, a model of which each layer may or may not start a pipeline stage.

    Raises RlcoreError with every rule that is broken.
    """
    raise_if_any(layout_problems(recipe, starts))
    parallel = recipe.parallel
    ep, etp = expert_sizes(parallel)
    return Layout(
        world_size=world_size(recipe),
        tp=parallel.tp,
        pp=parallel.pp,
        cp=parallel.cp,
        ep=ep,
        etp=etp,
        vpp=chunks_per_rank(parallel),
        stages=split_layers(parallel, len(starts)),
        mtp_rank=mtp_rank(parallel, recipe.mtp.num_layers),
        mtp_layers=recipe.mtp.num_layers,
    )


def layout_problems(recipe: Recipe, starts: Sequence[bool]) -> list[Problem]:
    """Return every rule that the recipe's layout breaks for a model of such layers; places are its keys."""
    return [*size_problems(recipe), *stage_problems(recipe.parallel, starts, recipe.mtp.num_layers)]


def world_size(recipe: Recipe) -> int:
    """Ranks that train: the GPUs, or on a CPU as many as `dp` asks for, else the fewest that it takes."""
    parallel = recipe.parallel
    dense = parallel.tp * parallel.pp * parallel.cp
    ep, etp = expert_sizes(parallel)
    on_cpu = dense * parallel.dp if parallel.dp else lcm(dense, ep * etp * parallel.pp)
    return recipe.cluster.nodes * recipe.cluster.gpus_per_node or on_cpu


def expert_sizes(parallel: Parallel) -> tuple[int, int]:
    """Return (ep, etp): without expert parallelism experts are split like all else, with it they are whole."""
    return parallel.ep, parallel.etp or (parallel.tp if parallel.ep == 1 else 1)


def size_problems(recipe: Recipe) -> Iterator[Problem]:
    """Check parallel sizes against each other and against the number of ranks."""
    parallel, ranks, on_cpu = recipe.parallel, world_size(recipe), not recipe.cluster.gpus_per_node
    ep, etp = expert_sizes(parallel)
    dense, sparse = parallel.tp * parallel.pp * parallel.cp, etp * ep * parallel.pp
    unit = "ranks" if on_cpu else "GPUs"
    if ranks % dense:
        message = f"tp × pp × cp = {dense} does not divide {ranks} {unit}"
        yield Problem("parallel", message, _counts(ranks, dense, unit))
    elif parallel.dp is not None and parallel.dp != ranks // dense:
        message = f"dp {parallel.dp} × {dense} (tp × pp × cp) is not the {ranks} GPUs of the cluster"
        yield Problem("parallel.dp", message, f"dp: {ranks // dense}, or leave it out")
    if ep > 1 and ranks % sparse:
        message = f"etp × ep × pp = {sparse} does not divide {ranks} {unit}"
        yield Problem("parallel.ep", message, _counts(ranks, sparse, unit))
    if ep == 1 and etp != parallel.tp:
        message = (
            f"etp {etp} with tp {parallel.tp} and ep 1: Megatron sums the experts over the wrong ranks "
            "and gives wrong gradients, without an error"
        )
        yield Problem("parallel.etp", message, "leave etp out, or ep above 1")
    if on_cpu and ep > 1 and etp > 1:
        message = "on a CPU, gloo cannot gather the unequal shares of experts that are spread and split"
        yield Problem("parallel.etp", message, "etp: 1")
    if parallel.pp > 1 and recipe.megatron.get("moe_token_dispatcher_type") == "allgather":
        message = "Megatron refuses 'allgather' where the lengths of a pipeline's micro-batches vary"
        yield Problem("megatron.moe_token_dispatcher_type", message, "alltoall, or flex on GPUs, or pp: 1")


def _counts(ranks: int, product: int, unit: str) -> str:
    """The numbers of ranks next to the given one that a product divides."""
    below = ranks // product * product
    return f"{below} or {below + product} {unit}" if below else f"{product} {unit}"
