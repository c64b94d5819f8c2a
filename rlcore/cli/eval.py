"""`rlcore eval`: pass@1 and pass@k of a checkpoint on the evaluation sets of a recipe, without training."""

import argparse
import json
from pathlib import Path

from rlcore.cli.arguments import add_recipe, named_recipe
from rlcore.cli.running import quiet_libraries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore eval RECIPE --checkpoint runs/first/hf --json"
    add_recipe(parser)
    parser.add_argument("--checkpoint", metavar="FOLDER", help="evaluate this model instead of the recipe's")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/eval"), help="folder for samples (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the metrics as one JSON object")


def run(args: argparse.Namespace) -> int:
    from rlcore.config.load import read_recipe

    checkpoint = [f"model.checkpoint={json.dumps(args.checkpoint)}"] if args.checkpoint else []
    loaded = read_recipe(named_recipe(args), [*args.overrides, *checkpoint])
    quiet_libraries()
    from rlcore.controller.evaluate import evaluate
    from rlcore.controller.preparation import evaluation_sets, prepare

    prepared = prepare(loaded, "eval")
    sets = evaluation_sets(prepared)
    metrics = evaluate(prepared, sets, args.out, quiet=args.json)
    if args.json:
        print(json.dumps(metrics))
    else:
        for name, value in metrics.items():
            print(f"{name.removeprefix('eval/'):40} {value:.4g}")
        print(f"samples: {args.out}")
    return 0
