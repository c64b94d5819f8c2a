"""`rlcore train`: reinforcement learning as a recipe describes it."""

import argparse
from pathlib import Path

from rlcore.cli import running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore train RECIPE --set optimizer.lr=2e-6 --run-dir runs/first"
    running.add_arguments(parser)
    parser.add_argument(
        "--cluster", choices=["local", "ray"], default="local", help="where processes run (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    loaded = running.load(args)
    from rlcore.controller.preparation import prepare
    from rlcore.controller.run_start import RunPlace
    from rlcore.controller.train import gather, train
    from rlcore.telemetry.report import write_report
    from rlcore.telemetry.summary import write_summary

    place = RunPlace(args.run_dir or Path("runs") / loaded.recipe.name, args.resume, args.accept_plugin_changes)
    materials = gather(prepare(loaded, "train"))
    status = running.run("train", args, place, lambda: train(materials, place, args.quiet))
    if status == 0 and not args.dry_run:
        write_summary(place.path, loaded.recipe.name)
        print(f"report: {write_report(place.path)}")
    return status
