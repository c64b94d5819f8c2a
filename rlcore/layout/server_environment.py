"""Environment variables that follow from SGLang servers: how much room DeepEP keeps for the tokens of a step.

Its low-latency kernels, which generate, write into buffers of a fixed size and stop the server when it does not
do. A recipe may set each variable itself; then it is checked.
"""

from collections.abc import Iterator, Mapping, Sequence

from rlcore.config.schema import Recipe
from rlcore.errors import Problem
from rlcore.layout.servers import Servers

DISPATCH_TOKENS = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
QUEUE_DEPTH = "NVSHMEM_QP_DEPTH"
# DeepEP's own, in `Buffer`: two entries of a queue for each token and one.
_DEFAULT_DEPTH = 1024
# From there on DeepEP would take a count of tokens for its mark of a finished message.
_MOST_TOKENS = 1024


def server_environment(recipe: Recipe, groups: Sequence[Servers]) -> dict[str, str]:
    """Return the environment of all servers: the recipe's, and what it leaves open as they need it."""
    given = recipe.cluster.env
    computed = {}
    if needed := max(map(dispatch_tokens, groups), default=0):
        tokens = _number(given, DISPATCH_TOKENS) or _power_of_two(needed)
        computed = {DISPATCH_TOKENS: str(tokens), "NVSHMEM_DISABLE_NCCL": "1"}
        if _depth(tokens) > _DEFAULT_DEPTH:
            computed[QUEUE_DEPTH] = str(_power_of_two(_depth(tokens)))
    return {**computed, **given}


def dispatch_tokens(group: Servers) -> int:
    """Most tokens that a rank sends to experts in one step of generation: sequences × drafted tokens of each.

    0 where no buffer is needed, or where nothing says how many sequences there are.
    """
    generates = group.role != "prefill" and group.value("deepep_mode") != "normal"
    if group.all_to_all != "deepep" or not generates:
        return 0
    return _sequences(group) * _drafted(group)


def _sequences(group: Servers) -> int:
    """Most sequences that a rank decodes together, in a CUDA graph or out of it."""
    sizes = group.value("cuda_graph_bs")
    largest = max(sizes, default=0) if isinstance(sizes, list) else 0
    in_graph = group.whole("cuda_graph_max_bs", largest)
    return max(in_graph, group.whole("max_running_requests", 0) // group.dp)


def _drafted(group: Servers) -> int:
    return group.whole("speculative_num_draft_tokens", 1)


def environment_facts(recipe: Recipe, groups: Sequence[Servers]) -> list[tuple[str, str]]:
    """Name the variables that servers get besides the recipe's own, and say why buffers are so large."""
    environment = server_environment(recipe, groups)
    facts = {name: value for name, value in environment.items() if name not in recipe.cluster.env}
    if widest := _widest(groups):
        facts[DISPATCH_TOKENS] = (
            f"{environment[DISPATCH_TOKENS]}: {widest.role} servers send {_product(widest)}"
        )
    return list(facts.items())


def environment_problems(recipe: Recipe, groups: Sequence[Servers]) -> Iterator[Problem]:
    """Check the variables that the recipe sets itself."""
    widest = _widest(groups)
    if widest is None:
        return
    environment, needed = server_environment(recipe, groups), dispatch_tokens(widest)
    tokens = _number(environment, DISPATCH_TOKENS)
    sent = f"{widest.role} servers send {_product(widest)}"
    if needed > _MOST_TOKENS:
        message = f"{sent} in a step, DeepEP takes {_MOST_TOKENS} at most"
        yield Problem(widest.place("max_running_requests"), message, "fewer, or deepep_mode: normal")
    elif not needed <= tokens <= _MOST_TOKENS:
        message = f"buffers hold {tokens} tokens ({_MOST_TOKENS} at most); {sent}"
        yield Problem(f"cluster.env.{DISPATCH_TOKENS}", message, f'"{_power_of_two(needed)}", or leave it out')
    elif _number(environment, QUEUE_DEPTH, _DEFAULT_DEPTH) < _depth(tokens):
        message = f"buffers of {tokens} tokens need queues of 2 × ({tokens} + 1)"
        remedy = f'"{_power_of_two(_depth(tokens))}", or leave it out'
        yield Problem(f"cluster.env.{QUEUE_DEPTH}", message, remedy)


def _widest(groups: Sequence[Servers]) -> Servers | None:
    """The servers whose ranks send most tokens in a step, if any need a buffer."""
    needy = [group for group in groups if dispatch_tokens(group)]
    return max(needy, key=dispatch_tokens, default=None)


def _product(group: Servers) -> str:
    drafted = f" × {_drafted(group)} tokens" if _drafted(group) > 1 else ""
    return f"{_sequences(group)} sequences{drafted} = {dispatch_tokens(group)}"


def _depth(tokens: int) -> int:
    return 2 * (tokens + 1)


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    """The whole number that a variable holds; 0 for anything else, so that it never suffices."""
    text = environment.get(name, str(default)).strip()
    return int(text) if text.isdecimal() else 0


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
