"""Show the recipes that the installed plugins ship; `rlcore plan` and `rlcore train` take their names."""

import argparse

from rlcore.cli.output import print_json, table
from rlcore.registry import Catalog
from rlcore.registry.resources import recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list of records")


def run(args: argparse.Namespace) -> int:
    shipped = recipes(Catalog.installed().resources())
    if args.json:
        print_json([{"name": one.name, "path": str(one.path), "summary": one.summary} for one in shipped])
    elif shipped:
        print(table(("RECIPE", "SUMMARY"), [(one.name, one.summary) for one in shipped]))
    else:
        print("no installed plugin ships a recipe; rlcore list-plugins shows what is installed")
    return 0
