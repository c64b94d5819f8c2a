"""Tell in words what this machine has and what it lacks for planning, training and generating."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

import rlcore
from rlcore.cli.output import print_json
from rlcore.registry import Catalog
from rlcore.registry.requirements import EXTRAS, installed_version

# What only some hardware needs, by distribution name: what it is for.
ACCELERATED = {
    "transformer-engine": "fused and FP8 layers on NVIDIA GPUs",
    "deep_ep": "expert-parallel communication on NVIDIA GPUs",
    "sglang": "the sglang engine (it may also live in an environment of its own: rollout.sglang.python)",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `good` is None where it is a fact, neither good nor bad."""

    what: str
    words: str
    good: bool | None = None
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list of records")


def run(args: argparse.Namespace) -> int:
    findings = [*_machine(), *_proxies(), *_training(), *_accelerated(), *_plugins()]
    if args.json:
        print_json([asdict(finding) for finding in findings])
        return 0
    for finding in findings:
        mark = {True: "ok ", False: "no ", None: "   "}[finding.good]
        print(f"{mark} {finding.what}: {finding.words}")
        if finding.remedy:
            print(f"      try: {finding.remedy}")
    return 0


def _machine() -> list[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        Finding("rlcore", f"{rlcore.__version__} on Python {platform.python_version()} ({sys.executable})"),
        Finding("processor", f"{len(os.sched_getaffinity(0))} cores may be used, {platform.machine()}"),
        Finding("memory", f"{memory:.0f} GiB"),
        _gpus(),
    ]


def _gpus() -> Finding:
    """Ask the driver, not torch: importing torch takes seconds and may not be possible."""
    if shutil.which("nvidia-smi") is None:
        return Finding("GPUs", "no NVIDIA driver; models train and generate on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    if answer.returncode != 0:
        return Finding("GPUs", f"nvidia-smi fails: {answer.stdout.strip()}", False, "check the NVIDIA driver")
    return Finding("GPUs", "; ".join(answer.stdout.strip().splitlines()), True)


def _proxies() -> list[Finding]:
    """Variables that send what nodes and servers say to each other to a proxy."""
    from rlcore.cluster.environment import proxies

    found = proxies(os.environ)
    if not found:
        return []
    words = f"{', '.join(found)} set; Ray and SGLang of several nodes do not find each other through a proxy"
    return [Finding("proxies", words, False, f"unset {' '.join(found)}, before Ray starts on a node")]


def _training() -> list[Finding]:
    """Whether the train extra is complete."""
    versions = {name: installed_version(name) for name in EXTRAS["train"].values()}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        words = f"not possible, these are not installed: {', '.join(missing)}"
        return [Finding("training", words, False, "pip install 'rlcore[train]'")]
    return [Finding("training", ", ".join(f"{name} {version}" for name, version in versions.items()), True)]


def _accelerated() -> list[Finding]:
    return [
        Finding(name, f"{installed_version(name) or 'absent'}; it is for {purpose}")
        for name, purpose in ACCELERATED.items()
    ]


def _plugins() -> list[Finding]:
    """Plugins in trouble, and copies of distributions that are hidden by others."""
    catalog = Catalog.installed()
    sound = sum(one.sound for one in catalog.candidates)
    bad = [one for one in catalog.candidates if not one.sound]
    hidden = "an earlier copy on sys.path hides this one"
    return [
        Finding("plugins", f"{sound} can be used, {len(bad)} cannot", not bad),
        *(Finding("plugin", one.trouble[0], False, one.remedy) for one in bad),
        *(Finding("distribution", f"{copy}: {hidden}", False, "uninstall it") for copy in catalog.shadowed),
    ]
