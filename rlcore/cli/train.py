"""`rlcore train`: reinforcement learning as a recipe describes it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.cli import running

if TYPE_CHECKING:
    from rlcore.config.load import LoadedRecipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore train RECIPE --set optimizer.lr=2e-6 --run-dir runs/first"
    running.add_arguments(parser)
    parser.add_argument(
        "--cluster",
        choices=["local", "ray"],
        help="where ranks run: on this machine, or in a Ray cluster, that of cluster.address or else the one "
        "this machine is in (default: ray where the recipe has cluster.address)",
    )


def run(args: argparse.Namespace) -> int:
    loaded = _load(args)
    if args.dry_run:
        _print_processes(loaded)
    running.quiet_libraries()
    from rlcore.controller.preparation import prepare
    from rlcore.controller.run_start import RunPlace
    from rlcore.controller.train import gather, train
    from rlcore.telemetry.report import write_report
    from rlcore.telemetry.run_folder import RunPaths
    from rlcore.telemetry.summary import write_summary

    place = RunPlace(args.run_dir or Path("runs") / loaded.recipe.name, args.resume, args.accept_plugin_changes)
    materials = gather(prepare(loaded, "train"))
    status = running.run("train", args, place, lambda: train(materials, place, args.quiet))
    if status == 0 and not args.dry_run:
        # A model that `rlcore sft` made brings the cost and the curve of its own run along.
        parent = materials.prepared.checkpoint.parent
        warm_start = parent if RunPaths(parent).is_run() else None
        write_summary(place.path, materials.prepared.model.spec.model_type, warm_start=warm_start)
        _print_results(place.path)
        print(f"report: {write_report(place.path)}")
    return status


def _load(args: argparse.Namespace) -> "LoadedRecipe":
    """The recipe, with the address of a cluster as `--cluster` has it."""
    loaded = running.load(args)
    address = loaded.recipe.cluster.address
    changed = {"local": None, "ray": address or "auto", None: address}[args.cluster]
    if changed == address:
        return loaded
    args.overrides = [*args.overrides, f"cluster.address={changed or 'null'}"]
    return running.load(args)


def _print_processes(loaded: "LoadedRecipe") -> None:
    """Every process that the run would start, also where something is still missing for it."""
    from rlcore.cli.processes import planned, process_lines
    from rlcore.layout.model import place_loaded
    from rlcore.registry import Catalog

    rules = loaded.recipe.plugins
    placed, _ = place_loaded(loaded, Catalog.installed(rules.deny, rules.require))
    if placement := planned(loaded, placed):
        print("\n".join(process_lines(placement)), flush=True)


def _print_results(run: Path) -> None:
    """pass@1 of every evaluation set, before and after."""
    from rlcore.telemetry.metrics import evaluation_names, read_metrics, values
    from rlcore.telemetry.run_folder import RunPaths
    from rlcore.telemetry.units import percent

    rows = read_metrics(RunPaths(run).metrics)
    for name in evaluation_names(rows):
        measured = values(rows, f"eval/{name}/pass@1")
        before = f"{percent(measured[0])} before, " if len(measured) > 1 else ""
        print(f"{name}: pass@1 {before}{percent(measured[-1])} after")
