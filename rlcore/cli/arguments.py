"""Arguments that several commands share, so that they read the same everywhere."""

import argparse

from rlcore.errors import fail


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare RECIPE and `--set`. A command that needs a recipe says so itself, and names the shipped ones."""
    parser.add_argument(
        "recipe", nargs="?", help="a recipe file, or the name of a shipped one (rlcore recipes)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the recipe, such as --set train.steps=20; may be given often",
    )


def named_recipe(args: argparse.Namespace) -> str:
    """The recipe that was named; raises RlcoreError, with the names of the shipped ones, if none was."""
    if args.recipe:
        return str(args.recipe)
    from rlcore.registry import Catalog
    from rlcore.registry.resources import recipes

    shipped = ", ".join(recipe.name for recipe in recipes(Catalog.installed().resources()))
    raise fail("RECIPE", "no recipe was given", f"one of {shipped}, or a file")
