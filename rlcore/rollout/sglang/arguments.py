"""From a recipe to the command line and environment of one server, or of the router in front of some.

Which arguments exist is `rlcore.config.sglang_arguments`'s; where servers stand is the caller's.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rlcore.config.rules import offloads_rollout
from rlcore.config.schema import Recipe
from rlcore.config.served_models import policy_checkpoint
from rlcore.config.sglang_arguments import Arguments

# What a server runs with where there is no GPU. Left to itself it would take most of the memory for its cache,
# burn a core while idle, and compile experts for minutes.
CPU_ARGUMENTS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "max_total_tokens": 65536,
    "max_running_requests": 64,
    "sleep_on_idle": True,
}
CPU_ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
# Proxies would come between a server and those who ask it, itself included; the allocator's settings between it
# and its releasing memory.
UNWANTED = frozenset({"http_proxy", "https_proxy", "all_proxy", "pytorch_cuda_alloc_conf"})
# A router gives up what lasts longer, and responses may be very long.
ROUTER_SECONDS = 14400


@dataclass(frozen=True)
class ServerPlace:
    """Where a server stands: its address, the GPUs that it spans (0 on a CPU), and more arguments that follow
    from the place, such as those of its nodes."""

    host: str
    port: int
    gpus: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Command:
    """How a process is started: its words, what is added to the environment, and where it will answer.

    `ports` are those that it listens on, as far as they are known before.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    url: str
    ports: tuple[int, ...] = ()

    def full_environment(self) -> dict[str, str]:
        """This process's environment without what harms servers, and with what they need."""
        kept = {name: value for name, value in os.environ.items() if name.lower() not in UNWANTED}
        return {**kept, **self.environment}


def server_command(
    recipe: Recipe,
    checkpoint: str,
    place: ServerPlace,
    known: Arguments,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Command:
    """The command of one server of a checkpoint, to a release that takes the `known` arguments.

    `overrides` are those of its server group.
    """
    # Another model has a configuration of its own.
    overridden = recipe.model.overrides if checkpoint == policy_checkpoint(recipe) else {}
    settings = {
        "model_path": checkpoint,
        "host": place.host,
        "port": place.port,
        "random_seed": recipe.seed,
        "dtype": recipe.model.dtype,
        "weight_version": "0",
        "incremental_streaming_output": True,
        "enable_memory_saver": offloads_rollout(recipe) and place.gpus > 0,
        "json_model_override_args": json.dumps(overridden) if overridden else None,
        **({"tp_size": place.gpus} if place.gpus else CPU_ARGUMENTS),
        **recipe.rollout.sglang.args,
        **overrides,
        **place.arguments,
    }
    taken = {name: value for name, value in settings.items() if known.name(name) in known.by_name}
    words = (python(recipe), "-m", "sglang.launch_server", *known.command_line(taken))
    return Command(words, {} if place.gpus else CPU_ENVIRONMENT, place.url)


def router_command(
    recipe: Recipe,
    workers: Sequence[str],
    place: ServerPlace,
    prefill: Mapping[str, int] = MappingProxyType({}),
) -> Command:
    """The command of a router that sends requests with equal beginnings to the same of these URLs.

    With `prefill` servers, by URL with the port where they are met, the workers only decode.
    """
    words = [python(recipe), "-m", "sglang_router.launch_router"]
    if prefill:
        words += ["--pd-disaggregation"]
        words += [word for url, port in prefill.items() for word in ("--prefill", url, str(port))]
        words += [word for url in workers for word in ("--decode", url)]
    else:
        words += ["--worker-urls", *workers]
    options = {
        "host": place.host,
        "port": place.port,
        # 29000 for 30000, as by default; another would take the port of this one.
        "prometheus-port": place.port - 1000,
        "request-timeout-secs": ROUTER_SECONDS,
        "log-level": "warn",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return Command((*words, *flags), {}, place.url)


def python(recipe: Recipe) -> str:
    """The interpreter that has sglang."""
    chosen = recipe.rollout.sglang.python
    return str(chosen.expanduser()) if chosen else sys.executable
