"""Arguments of SGLang servers: which there are, whether a recipe's fit, and how they read on a command line.

What an installation takes is asked of its own parser, in its own interpreter. Where there is none, a list that
was made so stands in; recipes may write names of earlier releases.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlcore.config.fields import suggest
from rlcore.errors import Problem, fail

HERE = Path(__file__).parent
# Importing it may take a while on a cold disk.
DESCRIBE_SECONDS = 180.0
# Names before 0.5.20, and what later releases call them.
RENAMED = {
    "cuda_graph_bs": "cuda_graph_bs_decode",
    "cuda_graph_max_bs": "cuda_graph_max_bs_decode",
    "nsa_decode_backend": "dsa_decode_backend",
    "nsa_prefill_backend": "dsa_prefill_backend",
}
OWNED = {
    "model_path": "rollout.checkpoint",
    "tokenizer_path": "model.checkpoint",
    "tp_size": "rollout.gpus_per_engine",
    "random_seed": "seed",
    "enable_memory_saver": "cluster.offload_rollout",
    "weight_version": "nothing: versions count optimizer steps",
    "preferred_sampling_params": "rollout.temperature, top_p and top_k: others would not be in log-probs",
    "incremental_streaming_output": "nothing: it is always on",
    "json_model_override_args": "model.overrides",
    **dict.fromkeys(
        ("host", "port", "nnodes", "node_rank", "dist_init_addr", "base_gpu_id", "nccl_port"),
        "nothing: rlcore places the servers",
    ),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "flag": (bool,),
    "switch": (bool,),
    "int": (int,),
    "float": (int, float),
    "text": (str,),
    "json": (dict, list),
    "any": (str, int, float, dict, list),
}


@dataclass(frozen=True)
class Argument:
    """One argument. `kind` is flag (set only), switch (set or unset), int, float, text, json, or any."""

    flag: str
    kind: str
    many: bool = False
    choices: tuple[Any, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Whether a value from YAML fits; null leaves an argument to the server."""
        if value is None:
            return True
        if self.many:
            return isinstance(value, list) and all(self._accepts_one(item) for item in value)
        return self._accepts_one(value)

    def _accepts_one(self, value: Any) -> bool:
        fits = isinstance(value, _TYPES[self.kind])
        if isinstance(value, bool):
            fits = self.kind in ("flag", "switch")
        return fits and (not self.choices or value in self.choices)

    @property
    def wants(self) -> str:
        """What would fit, in words."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        kind = {"flag": "true or false", "switch": "true or false", "any": "text"}.get(self.kind, self.kind)
        return f"a list of {kind}" if self.many else f"{kind}"

    def words(self, value: Any) -> list[str]:
        """The argument as words of a command line; none for what it is without them."""
        if value is None or (self.kind == "flag" and not value):
            return []
        if self.kind in ("flag", "switch"):
            return [self.flag if value else f"--no-{self.flag.removeprefix('--')}"]
        values = value if self.many else [value]
        return [self.flag, *(json.dumps(one) if isinstance(one, dict | list) else str(one) for one in values)]


@dataclass(frozen=True)
class Arguments:
    """What servers of one release take, by name. `router` says that sglang-router is installed beside it."""

    release: str
    router: bool
    by_name: Mapping[str, Argument]

    def name(self, written: str) -> str:
        """The name that this release has for one that a recipe writes."""
        return written if written in self.by_name else RENAMED.get(written, written)

    def problems(self, key: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
        """What is wrong with settings; places are keys of the recipe."""
        dp_size = settings.get("dp_size", 1)
        if isinstance(dp_size, int) and dp_size > 1 and not settings.get("enable_dp_attention"):
            message = f"dp_size {dp_size} spreads attention over ranks of one engine"
            yield Problem(f"{key}.dp_size", message, "enable_dp_attention: true")
        for written, value in settings.items():
            place, name = f"{key}.{written}", self.name(written)
            if name in OWNED:
                yield Problem(place, f"rlcore sets {name!r} itself", f"use {OWNED[name]}")
            elif name not in self.by_name:
                yield Problem(
                    place, f"SGLang {self.release} has no argument {written!r}", self._instead(written)
                )
            elif not self.by_name[name].accepts(value):
                yield Problem(place, f"{value!r} does not fit {written}", self.by_name[name].wants)

    def command_line(self, settings: Mapping[str, Any]) -> list[str]:
        """Settings without problems as words of a command line, in their order."""
        return [
            word
            for written, value in settings.items()
            for word in self.by_name[self.name(written)].words(value)
        ]

    def _instead(self, written: str) -> str:
        hint = suggest(written.replace("-", "_"), [*self.by_name, *RENAMED])
        if not hint.startswith("did you mean"):
            return "the exact name of a field of ServerArgs"
        match = hint.split("'")[1]
        return f"use {OWNED[match]}" if match in OWNED else hint


@cache
def known_arguments() -> Arguments:
    """What the release takes that rlcore was last tested with."""
    return _read((HERE / "data" / "sglang.json").read_text(encoding="utf-8"))


def serving_arguments(python: Path | None) -> Arguments:
    """What servers take that are launched with an interpreter, by default this one.

    Raises RlcoreError for an interpreter without SGLang.
    """
    if python is None and find_spec("sglang") is None:
        return known_arguments()
    return installed_arguments(python.expanduser() if python else Path(sys.executable))


@cache
def installed_arguments(python: Path) -> Arguments:
    """What the SGLang of an interpreter takes; raises RlcoreError if it has none that can be imported."""
    command = [str(python), str(HERE / "describe_sglang.py")]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=DESCRIBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise fail("rollout.sglang.python", f"{python} cannot be run: {error}") from None
    if run.returncode:
        reason = (run.stderr.strip() or "no reason given").splitlines()[-1]
        remedy = "an interpreter with sglang installed: pip install 'sglang>=0.5.21'"
        raise fail("rollout.sglang.python", f"{python} cannot import sglang: {reason}", remedy)
    return _read(run.stdout)


def _read(text: str) -> Arguments:
    said = json.loads(text)
    return Arguments(
        said["release"],
        said["router"],
        {
            name: Argument(one["flag"], one["kind"], one.get("many", False), tuple(one.get("choices", ())))
            for name, one in said["arguments"].items()
        },
    )
