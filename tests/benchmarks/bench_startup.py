"""Start-up time of `rlcore --help` and `rlcore list-plugins` against `pytest --version`, in one environment.

    python tests/benchmarks/bench_startup.py [--rounds 25]

Makes a fresh environment of 500 distributions, 50 of which are plugins, and runs the commands in turn.
Prints the fastest run of each, the ratios, and which modules the commands should not have imported but did.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
DISTRIBUTIONS, PLUGINS = 500, 50
HEAVY = ("pluggy", "pydantic", "torch", "rich", "startup_plugin")
SCRIPT = "#!{python}\nimport re\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"
METADATA = "Metadata-Version: 2.4\nName: {name}\nVersion: 1.2.3\nRequires-Dist: {requires}\n\n{text}\n"


def requirements(*names: str) -> set[str]:
    """The distributions that these need, themselves included."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        todo += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def link_distribution(name: str, site: Path) -> None:
    """Make an installed distribution visible in another site-packages, metadata included."""
    files = importlib.metadata.distribution(name).files or ()
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        source = Path(importlib.metadata.distribution(name).locate_file(top))
        if not (site / top).exists():
            (site / top).symlink_to(source)


def make_distribution(site: Path, name: str, requires: str, entry_points: str) -> None:
    folder = site / f"{name}-1.2.3.dist-info"
    folder.mkdir()
    text = "A paragraph of a description as long as they usually are. " * 60
    (folder / "METADATA").write_text(METADATA.format(name=name, requires=requires, text=text))
    (folder / "RECORD").write_text("".join(f"{name}/module_{i}.py,,\n" for i in range(30)))
    if entry_points:
        (folder / "entry_points.txt").write_text(entry_points)


def make_environment(root: Path) -> Path:
    """An environment with pytest, rlcore and DISTRIBUTIONS others; returns its folder of commands."""
    venv.create(root, symlinks=True)
    site = next(root.glob("lib/python*/site-packages"))
    for name in requirements("pytest", "rlcore") - {"rlcore"}:
        link_distribution(name, site)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*command, str(REPOSITORY)], check=True)
    for index in range(DISTRIBUTIONS - PLUGINS):
        scripts = f"[console_scripts]\nstartup-{index} = startup_{index}:main\n" if index % 3 == 0 else ""
        make_distribution(site, f"startup_{index}", "numpy", scripts)
    for index in range(PLUGINS):
        entry = f"[rlcore.rewards]\nstartup_{index} = startup_plugin_{index}:score\n"
        make_distribution(site, f"startup_plugin_{index}", "rlcore>=0.1,<1", entry)
        (site / f"startup_plugin_{index}.py").write_text("def score(sample):\n    return 0.0\n")
    for name, module, function in (
        ("rlcore", "rlcore.cli.main", "main"),
        ("pytest", "_pytest.config", "_console_main"),
    ):
        script = root / "bin" / name
        script.write_text(SCRIPT.format(python=root / "bin" / "python", module=module, name=function))
        script.chmod(0o755)
    return root / "bin"


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - start


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def imported(command: list[str]) -> list[str]:
    """Those of HEAVY that a command imports."""
    python = str(Path(command[0]).with_name("python"))
    run = [python, "-X", "importtime", *command]
    log = subprocess.run(run, check=True, capture_output=True, text=True, env=environment()).stderr
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in log.splitlines()}
    return sorted(module for module in modules if module.startswith(HEAVY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = make_environment(Path(folder) / "environment")
        commands = {
            "pytest --version": [str(bin_folder / "pytest"), "--version"],
            "rlcore --help": [str(bin_folder / "rlcore"), "--help"],
            "rlcore list-plugins": [str(bin_folder / "rlcore"), "list-plugins"],
            "python -c pass": [str(bin_folder / "python"), "-c", "pass"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds(command))
        fastest = {name: min(values) for name, values in times.items()}
        records = json.loads(
            subprocess.check_output([*commands["rlcore list-plugins"], "--json"], env=environment())
        )
        result = {
            "distributions": DISTRIBUTIONS,
            "plugins_listed": sum(one["name"].startswith("startup_") for one in records),
            "milliseconds": {name: round(value * 1000, 1) for name, value in fastest.items()},
            "list_plugins_over_pytest": round(fastest["rlcore list-plugins"] / fastest["pytest --version"], 3),
            "help_over_pytest": round(fastest["rlcore --help"] / fastest["pytest --version"], 3),
            "imported_but_should_not": {
                name: imported(commands[name]) for name in ("rlcore --help", "rlcore list-plugins")
            },
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
