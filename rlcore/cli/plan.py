"""Check a recipe and show what it would do, before anything starts: no GPU, no download, no torch."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rlcore.cli.arguments import add_recipe, named_recipe
from rlcore.cli.output import print_json, print_problems, table
from rlcore.errors import Problem, RlcoreError

if TYPE_CHECKING:
    from rlcore.config.load import LoadedRecipe
    from rlcore.layout.model import Placed
    from rlcore.registry import Catalog

Facts = list[tuple[str, str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore plan RECIPE --set rollout.samples_per_prompt=16"
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print one record, defaults included")


def run(args: argparse.Namespace) -> int:
    from rlcore.config.load import read_recipe
    from rlcore.registry import Catalog

    recipe = named_recipe(args)
    try:
        loaded = read_recipe(recipe, args.overrides)
    except RlcoreError as error:
        if not args.json:
            raise
        print_json({"problems": _records(error.problems)})
        return 1
    rules = loaded.recipe.plugins
    return _report(loaded, Catalog.installed(rules.deny, rules.require), args.json)


def _report(loaded: "LoadedRecipe", catalog: "Catalog", as_json: bool) -> int:
    """Print the plan of a recipe; 1 if it has any problem."""
    from rlcore.config.checks import check, located

    problems = check(loaded, catalog)
    placed = None
    try:
        placed = _placed(loaded, catalog)
    except RlcoreError as error:
        problems = list(dict.fromkeys([*problems, *(located(loaded, found) for found in error.problems)]))
    sections = {
        "plugins": _plugins(loaded, catalog),
        "batches": _batches(loaded),
        "layout": _layout(placed) if placed else [],
    }
    notes = _notes(loaded)
    if as_json:
        print_json(
            {
                "recipe": loaded.recipe.model_dump(mode="json"),
                **{name: dict(facts) for name, facts in sections.items()},
                "notes": _records(notes),
                "problems": _records(problems),
            }
        )
    else:
        _print(loaded, sections, notes, problems)
    return int(bool(problems))


def _placed(loaded: "LoadedRecipe", catalog: "Catalog") -> "Placed | None":
    """The model in its layout, or None where the keys that say it were refused."""
    from rlcore.layout.model import place_model

    reads = ("model", "parallel", "cluster", "layout_validators")
    return None if any(map(loaded.is_broken, reads)) else place_model(loaded.recipe, catalog)


def _plugins(loaded: "LoadedRecipe", catalog: "Catalog") -> Facts:
    """Each key that selects a plugin, with the distribution that provides it."""
    from rlcore.config.checks import model_selections, selections

    facts = []
    chosen = list(selections(loaded.recipe))
    with suppress(RlcoreError):  # `check` reports it, here and below
        chosen += model_selections(loaded.recipe, catalog)
    for one in chosen:
        key = one.kind if one.key.startswith("model.") else one.key
        with suppress(RlcoreError):
            found = catalog.find(one.kind, one.name, one.key)
            facts.append((key, f"{found.name} of {found.dist} {found.version}"))
    return facts


def _batches(loaded: "LoadedRecipe") -> Facts:
    """How prompts become samples, optimizer steps and micro-batches."""
    from rlcore.config.rules import batch_size, samples_per_rollout

    recipe = loaded.recipe
    rollout, train = recipe.rollout, recipe.train
    samples, batch = samples_per_rollout(recipe), batch_size(recipe)
    length = (
        f"{train.steps:,} rollouts" if train.steps else f"{train.epochs} epochs" if train.epochs else "unsaid"
    )
    updates = samples // batch if batch else 0
    return [
        ("rollout", f"{rollout.prompts_per_step} prompts × {rollout.samples_per_prompt} = {samples:,} samples"),
        ("optimizer steps", f"{updates} per rollout, of {batch:,} samples"),
        ("length", length),
        ("micro-batch", f"at most {train.max_tokens_per_gpu * recipe.parallel.cp:,} packed tokens"),
        ("response", f"at most {rollout.max_response_tokens:,} tokens"),
    ]


def _layout(placed: "Placed") -> Facts:
    """Ranks, parallel sizes and the layers of each stage."""
    spec, layout = placed.spec, placed.layout
    sizes = f"tp {layout.tp} × pp {layout.pp} × cp {layout.cp} × dp {layout.dp}"
    facts = [
        (
            "model",
            f"{spec.model_type}, {len(spec.layers)} layers, {spec.parameters / 1e9:.3g} billion parameters",
        ),
        ("ranks", f"{layout.world_size} = {sizes}"),
    ]
    if layout.ep > 1:
        facts.append(("experts", f"ep {layout.ep} × etp {layout.etp} × dp {layout.expert_dp}"))
    if any(map(any, layout.stages)):
        facts += [(f"stage {rank}", placed.stage_kinds(rank)) for rank in range(layout.pp)]
    return facts


def _notes(loaded: "LoadedRecipe") -> list[Problem]:
    """What does not make the recipe wrong, but keeps it from running here and now."""
    from rlcore.config.checkpoint import is_here
    from rlcore.config.checks import located, missing_data
    from rlcore.config.support import unbuilt

    checkpoint, notes = loaded.recipe.model.checkpoint, []
    if not is_here(checkpoint):
        message = f"{checkpoint!r} is not on this machine"
        notes = [
            Problem("model.checkpoint", message, f"hf download {checkpoint}"),
            *missing_data(loaded.recipe),
        ]
    return [*(located(loaded, note) for note in notes), *unbuilt(loaded)]


def _records(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [{"place": one.place, "message": one.message, "remedy": one.remedy} for one in problems]


def _print(
    loaded: "LoadedRecipe", sections: dict[str, Facts], notes: Sequence[Problem], problems: Sequence[Problem]
) -> None:
    print("\n".join(_lines(loaded, sections, notes)))
    if problems:
        print(f"\n{len(problems)} problem{'s' * (len(problems) > 1)}:", flush=True)
        print_problems(problems)
    else:
        print("\nno problem found")


def _lines(loaded: "LoadedRecipe", sections: dict[str, Facts], notes: Sequence[Problem]) -> Iterator[str]:
    yield "recipe (what was set; --json prints the defaults too)"
    yield from ("  " + line for line in loaded.dump(defaults=False).splitlines())
    for name, facts in sections.items():
        if facts:
            yield f"\n{name}"
            yield from ("  " + line for line in table(facts[0], facts[1:]).splitlines())
    if notes:
        yield "\nnot here or not yet (`rlcore train` refuses these)"
        yield from (f"  {note}" for note in notes)
