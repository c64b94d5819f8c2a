"""What SGLang servers can be: roles that work together, ranks that share attention and experts evenly.

The rules are those of SGLang's ServerArgs and of DeepEP, where they would only show on GPUs that wait.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlcore.config.checks import located
from rlcore.config.load import LoadedRecipe
from rlcore.config.rules import divisors_near
from rlcore.errors import Problem, RlcoreError
from rlcore.layout.server_environment import environment_problems
from rlcore.layout.servers import Servers, servers_of

if TYPE_CHECKING:
    from rlcore.models.spec import ModelSpec

# For these numbers of ranks DeepEP has settings of its normal kernels (`Buffer.get_dispatch_config`).
_DEEPEP_RANKS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 160)
_PARTNERS = {"prefill": "decode", "decode": "prefill"}


def check_servers(loaded: LoadedRecipe, spec: "ModelSpec | None") -> list[Problem]:
    """Return what is wrong with a recipe's servers; places are files and lines.

    Experts are counted where the model is known. Empty where the keys that describe servers were refused.
    """
    if any(map(loaded.is_broken, ("rollout", "cluster"))):
        return []
    try:
        groups = servers_of(loaded.recipe)
    except RlcoreError:  # `check` reports it
        return []
    experts = spec.transformer_config.get("num_moe_experts") if spec else None
    found = [*server_problems(groups, experts), *environment_problems(loaded.recipe, groups)]
    return [located(loaded, problem) for problem in found]


def server_problems(groups: Sequence[Servers], experts: int | None) -> Iterator[Problem]:
    """Check server groups; `experts` is how many a layer of the model has, if any."""
    yield from _lonely(groups)
    for group in groups:
        if group.role == "placeholder" or group.gpus % group.gpus_per_server:
            continue
        yield from _shares(group)
        yield from _deepep(group)
        yield from _drafts(group)
        if experts and group.follow_policy:
            yield from _experts(group, experts)


def _lonely(groups: Sequence[Servers]) -> Iterator[Problem]:
    """Prefill and decode servers of a model need each other, and leave regular ones nothing to do."""
    models: dict[str, dict[str, Servers]] = defaultdict(dict)
    for group in groups:
        models[group.model][group.role] = group
    for name, roles in models.items():
        halves = roles.keys() & _PARTNERS.keys()
        if len(halves) == 1:
            (role,) = halves
            message = f"model {name!r} has {role} servers, but no {_PARTNERS[role]} servers"
            yield Problem(roles[role].key, message, f"a group with worker_type: {_PARTNERS[role]}")
        if halves and "regular" in roles:
            message = f"model {name!r} has regular servers beside {' and '.join(sorted(halves))} servers"
            yield Problem(roles["regular"].key, message, "worker_type: prefill or decode")


def _shares(group: Servers) -> Iterator[Problem]:
    """Pipeline stages, copies of attention and shares of experts divide the ranks of a server."""
    gpus, asked = group.gpus_per_server, group.whole("ep_size", group.ep)
    if gpus % group.pp:
        message = f"{group.pp} stages do not divide the {gpus} GPUs of a server"
        yield Problem(group.place("pp_size"), message, divisors_near(gpus, group.pp))
        return
    for name, size in {"dp_size": group.dp, "ep_size": asked}.items():
        if group.tp % size:
            message = f"{size} does not divide the {group.tp} ranks of a server"
            yield Problem(group.place(name), message, divisors_near(group.tp, size))
    if asked != group.ep and group.tp % asked == 0:
        message = f"{group.all_to_all} spreads experts over all {group.ep} ranks of a server, not over {asked}"
        yield Problem(group.place("ep_size"), message, f"ep_size: {group.ep}, or leave it out")


def _deepep(group: Servers) -> Iterator[Problem]:
    normal = group.value("deepep_mode") != "low_latency"
    if group.all_to_all == "deepep" and normal and group.ep not in _DEEPEP_RANKS:
        near = [str(size) for size in _DEEPEP_RANKS if size <= group.ep][-1:]
        near += [str(size) for size in _DEEPEP_RANKS if size > group.ep][:1]
        message = f"DeepEP has no settings for {group.ep} ranks that share experts, and for at most 160"
        yield Problem(group.size_key, message, f"servers of {' or '.join(near)} GPUs")


def _drafts(group: Servers) -> Iterator[Problem]:
    steps, tokens = group.whole("speculative_num_steps", 0), group.whole("speculative_num_draft_tokens", 0)
    if group.value("speculative_eagle_topk") == 1 and steps and tokens not in (0, steps + 1):
        message = (
            f"one token a step in {steps} steps are {steps + 1} to verify, with the one before; not {tokens}"
        )
        place = group.place("speculative_num_draft_tokens")
        yield Problem(place, message, f"speculative_num_draft_tokens: {steps + 1}")


def _experts(group: Servers, experts: int) -> Iterator[Problem]:
    """Ranks hold equally many experts, copies of busy ones included."""
    copies, ep = group.whole("ep_num_redundant_experts", 0), group.ep
    if (experts + copies) % ep:
        held = f"{experts} experts" + (f" and {copies} redundant ones" if copies else "")
        message = f"{held} do not spread evenly over {ep} ranks"
        remedy = f"ep_num_redundant_experts: {-experts % ep}"
        yield Problem(group.place("ep_num_redundant_experts" if copies else "ep_size"), message, remedy)
