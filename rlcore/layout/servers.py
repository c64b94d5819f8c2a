"""The SGLang servers that a recipe asks for, as records: who starts servers builds on them.

What cannot be about them is in `server_rules`, and what their environment must hold in `server_environment`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlcore.config.checks import server_groups
from rlcore.config.rules import rollout_gpus
from rlcore.config.schema import Recipe, ServedModel, ServerGroup
from rlcore.config.served_models import follows_policy, served_checkpoint
from rlcore.config.sglang_arguments import RENAMED


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Equal servers of one model: one server group, or all servers where a recipe has no groups.

    `key` is their place in the recipe. ServerArgs of the recipe are `shared`, those of the group `overrides`.
    `checkpoint` is a path or hub id. Servers that `follow_policy` get its weights and make its samples.
    """

    key: str
    model: str
    checkpoint: str
    follow_policy: bool
    role: str
    gpus: int
    gpus_per_server: int
    shared: Mapping[str, Any]
    overrides: Mapping[str, Any]

    @property
    def args(self) -> dict[str, Any]:
        """Fields of ServerArgs, but for those that follow from where a server stands."""
        return {**self.shared, **self.overrides}

    @property
    def count(self) -> int:
        return self.gpus // self.gpus_per_server

    @property
    def pp(self) -> int:
        """Pipeline stages of a server."""
        return self.whole("pp_size", 1)

    @property
    def tp(self) -> int:
        """Ranks of one stage of a server, which attention and experts share in ways of their own."""
        return self.gpus_per_server // self.pp

    @property
    def dp(self) -> int:
        """Copies of attention in a server, each with sequences of its own."""
        return self.whole("dp_size", 1)

    @property
    def ep(self) -> int:
        """Ranks over which experts are spread: all, where tokens travel between them (as ServerArgs has it)."""
        return self.tp if self.all_to_all else self.whole("ep_size", 1)

    @property
    def all_to_all(self) -> str:
        """What sends tokens to their experts; empty where every rank has all tokens."""
        backend = self.value("moe_a2a_backend") or "none"
        return "" if backend == "none" else str(backend)

    @property
    def size_key(self) -> str:
        """The recipe's key of a server's GPUs."""
        whole = self.key == "rollout.sglang"
        return "rollout.gpus_per_engine" if whole else f"{self.key}.num_gpus_per_engine"

    def value(self, name: str) -> Any:
        """A field of ServerArgs by its earlier or later name; None where the recipe leaves it open."""
        args = self.args
        return args.get(name, args.get(RENAMED.get(name, name)))

    def whole(self, name: str, default: int) -> int:
        """A field that holds a whole number; values of other types are refused elsewhere."""
        value = self.value(name)
        return value if isinstance(value, int) and value > 0 else default

    def place(self, name: str) -> str:
        """The recipe's key of a field of ServerArgs."""
        return f"{self.key}.overrides.{name}" if name in self.overrides else f"rollout.sglang.args.{name}"


def server_facts(groups: Sequence[Servers], *, on_gpus: bool) -> list[tuple[str, str]]:
    """Say of each group how many servers of which size it has, how ranks share attention and experts, and
    whether they keep the weights of their checkpoint."""
    return [
        (f"{one.model} {one.role}", f"{_sizes(one) if on_gpus else f'{one.gpus} on CPUs'}, {_weights(one)}")
        for one in groups
    ]


def _weights(group: Servers) -> str:
    return group.checkpoint if group.follow_policy else f"{group.checkpoint}, as it is"


def _sizes(group: Servers) -> str:
    sizes = {"pp": group.pp, "tp": group.tp, "dp": group.dp, "ep": group.ep}
    shares = " ".join(f"{name} {size}" for name, size in sizes.items() if size > 1 or name == "tp")
    return f"{group.count} × {group.gpus_per_server} GPUs: {shares}"


def servers_of(recipe: Recipe) -> list[Servers]:
    """Return the servers to start, group by group; none where another engine generates, or a recipe has URLs.

    Raises RlcoreError if a file of server groups is malformed.
    """
    if recipe.rollout.engine != "sglang" or recipe.rollout.sglang.urls:
        return []
    groups = server_groups(recipe)
    if groups:
        return list(_grouped(recipe, groups.sglang))
    # On a CPU one server starts where no number of them is given.
    gpus = rollout_gpus(recipe) or int(not recipe.cluster.gpus_per_node)
    if not gpus:
        return []
    group = ServerGroup(num_gpus=gpus)
    return [_servers(recipe, "rollout.sglang", ServedModel(server_groups=[group]), group)]


def _grouped(recipe: Recipe, models: list[ServedModel]) -> Iterator[Servers]:
    for m, model in enumerate(models):
        for g, group in enumerate(model.server_groups):
            yield _servers(recipe, f"rollout.sglang.config.sglang.{m}.server_groups.{g}", model, group)


def _servers(recipe: Recipe, key: str, model: ServedModel, group: ServerGroup) -> Servers:
    rollout = recipe.rollout
    each = group.num_gpus_per_engine or model.num_gpus_per_engine or rollout.gpus_per_engine
    return Servers(
        key=key,
        model=model.name,
        checkpoint=served_checkpoint(recipe, model),
        follow_policy=follows_policy(recipe, model),
        role=group.worker_type,
        gpus=group.num_gpus,
        gpus_per_server=each,
        shared=rollout.sglang.args,
        overrides=group.overrides,
    )
