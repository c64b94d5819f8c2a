"""`rlcore sft`: a supervised warm start on the answers that a recipe's `sft` section names."""

import argparse
from pathlib import Path

from rlcore.cli import running


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: rlcore sft RECIPE --run-dir runs/warm, then "
        "rlcore train RECIPE --set model.checkpoint=runs/warm/hf"
    )
    running.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    loaded = running.load(args)
    running.quiet_libraries()
    from rlcore.controller.preparation import prepare
    from rlcore.controller.run_start import RunPlace
    from rlcore.controller.warm_start import gather, imitate

    place = RunPlace(
        args.run_dir or Path("runs") / f"{loaded.recipe.name}-sft", args.resume, args.accept_plugin_changes
    )
    lessons = gather(prepare(loaded, "sft"))
    status = running.run("sft", args, place, lambda: imitate(lessons, place, args.quiet))
    if status == 0 and not args.dry_run:
        print(f"the model is in {place.path / 'hf'}")
    return status
