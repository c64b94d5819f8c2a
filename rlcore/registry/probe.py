"""Imports plugins in processes of their own, so that none can hang, crash or litter the one that asks.

Run as a module it is the child: it loads one plugin and writes one JSON record.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from rlcore.errors import RlcoreError
from rlcore.registry.candidate import Candidate
from rlcore.registry.catalog import Catalog
from rlcore.registry.resources import package_folder


@dataclass(frozen=True)
class Probe:
    """A candidate after the attempt to load it, and its options: name, type, default (None: required), help."""

    candidate: Candidate
    options: list[dict[str, Any]] = field(default_factory=list)


def check(candidates: Iterable[Candidate], timeout: float) -> list[Probe]:
    """Load each candidate that may be loaded, a few at a time; its state becomes ok or broken."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda candidate: probe(candidate, timeout), candidates))


def probe(candidate: Candidate, timeout: float) -> Probe:
    """Load one candidate in a child process, killed with all its children after `timeout` seconds."""
    if not candidate.sound:
        return Probe(candidate)
    if candidate.kind == "resource":
        return _probe_resource(candidate)
    command = [sys.executable, "-P", "-m", __name__, candidate.kind, f"{candidate.dist}:{candidate.name}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer, _ = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return _broken(candidate, f"its import took longer than {timeout:g} s")
    if not answer:
        return _broken(candidate, f"its import ended the process with exit code {child.returncode}")
    record = json.loads(answer)
    options = record.pop("options")
    return Probe(replace(candidate, **record), options)


def _probe_resource(candidate: Candidate) -> Probe:
    if package_folder(candidate.value) is None:
        return _broken(candidate, f"there is no package folder {candidate.value}")
    return Probe(replace(candidate, state="ok"))


def _broken(candidate: Candidate, reason: str) -> Probe:
    remedy = f"mend it, or pip uninstall {candidate.dist}"
    return Probe(replace(candidate, state="broken", reason=reason, remedy=remedy))


def _load(kind: str, name: str) -> dict[str, Any]:
    """Load a plugin in this process and describe the outcome."""
    try:
        plugin = Catalog.installed().load(kind, name)
    except RlcoreError as error:
        (problem,) = error.problems
        reason = problem.message.removeprefix("is broken: ")
        return {"state": "broken", "reason": reason, "remedy": problem.remedy, "options": []}
    options = [
        {
            "name": name,
            "type": inspect.formatannotation(option.annotation),
            "default": None if option.is_required() else repr(option.get_default(call_default_factory=True)),
            "help": option.description or "",
        }
        for name, option in plugin.options_model.model_fields.items()
    ]
    return {"state": "ok", "reason": "", "remedy": "", "options": options}


def main() -> None:
    """Answer on the first stdout; what the plugin prints goes to stderr, and its threads end with us."""
    channel = os.dup(1)
    os.dup2(2, 1)
    os.write(channel, json.dumps(_load(*sys.argv[1:])).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
