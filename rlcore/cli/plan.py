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
    from rlcore.config.schema import Parallel
    from rlcore.layout.balance import Balanced
    from rlcore.layout.model import Placed
    from rlcore.registry import Catalog

Facts = list[tuple[str, str]]
# Sections that are in the record as they are printed.
_RECORDED = ("plugins", "batches", "layout", "memory", "servers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore plan RECIPE --set rollout.samples_per_prompt=16"
    add_recipe(parser)
    parser.add_argument("--json", action="store_true", help="print one record, defaults included")
    parser.add_argument("--processes", action="store_true", help="print every process and how it is started")


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
    return _report(loaded, Catalog.installed(rules.deny, rules.require), args)


def _report(loaded: "LoadedRecipe", catalog: "Catalog", args: argparse.Namespace) -> int:
    """Print the plan of a recipe; 1 if it has any problem."""
    from rlcore.cli.processes import planned, process_facts, process_lines, process_records
    from rlcore.config.checks import check
    from rlcore.layout import summary
    from rlcore.layout.memory import memory_facts
    from rlcore.layout.model import place_loaded
    from rlcore.layout.seats import check_seats
    from rlcore.layout.server_rules import check_servers

    placed, misplaced = place_loaded(loaded, catalog)
    unserved = [*check_servers(loaded, placed.spec if placed else None), *check_seats(loaded)]
    problems = list(dict.fromkeys([*check(loaded, catalog), *misplaced, *unserved]))
    placement = None if problems else planned(loaded, placed)
    near, balanced = _offers(loaded, catalog, placed, misplaced)
    length, cluster = loaded.recipe.rollout.max_response_tokens, loaded.recipe.cluster
    sections = {
        "plugins": _plugins(loaded, catalog),
        "batches": _batches(loaded, placed),
        "layout": summary.layout_facts(placed, length) if placed else [],
        "groups": summary.group_facts(placed.layout) if placed else [],
        "memory": memory_facts(loaded.recipe, placed) if placed and cluster.gpus_per_node else [],
        "servers": _servers(loaded),
        "processes": process_facts(placement) if placement else [],
        "nearest layouts that work": summary.nearest_facts(loaded.recipe.parallel, near),
        "better balanced stages, by the dearest": summary.balanced_facts(loaded.recipe.parallel, balanced),
    }
    notes = _notes(loaded)
    if args.json:
        print_json(
            {
                "recipe": loaded.recipe.model_dump(mode="json"),
                **{name: dict(sections[name]) for name in _RECORDED},
                **(summary.record(placed, length) if placed else {}),
                **(process_records(placement) if placement else {}),
                "nearest": [parallel.model_dump() for parallel in near],
                "balanced": [one.parallel.model_dump() | {"dearest": one.dearest} for one in balanced],
                "notes": _records(notes),
                "problems": _records(problems),
            }
        )
    else:
        if placement and args.processes:
            print("\n".join(process_lines(placement)) + "\n")
        _print(loaded, sections, notes, problems)
    return int(bool(problems))


def _servers(loaded: "LoadedRecipe") -> Facts:
    """SGLang servers by group, and the environment that follows from them."""
    from rlcore.layout.server_environment import environment_facts
    from rlcore.layout.servers import server_facts, servers_of

    try:
        groups = servers_of(loaded.recipe)
    except RlcoreError:  # `check` reports it
        return []
    on_gpus = bool(loaded.recipe.cluster.gpus_per_node)
    return [*server_facts(groups, on_gpus=on_gpus), *environment_facts(loaded.recipe, groups)]


def _offers(
    loaded: "LoadedRecipe", catalog: "Catalog", placed: "Placed | None", misplaced: Sequence[Problem]
) -> "tuple[list[Parallel], list[Balanced]]":
    """Layouts next to one that does not work, and much better balanced ones of its sizes.

    None where not the layout is what is wrong.
    """
    from rlcore.layout.balance import balanced
    from rlcore.layout.model import read_model
    from rlcore.layout.nearest import nearest

    if not placed and not misplaced:
        return [], []
    try:
        model = read_model(loaded.recipe, catalog)
    except RlcoreError:
        return [], []
    near = nearest(loaded.recipe, model) if misplaced else []
    return near, balanced(loaded.recipe, model, than=placed)


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


def _batches(loaded: "LoadedRecipe", placed: "Placed | None") -> Facts:
    """How prompts become samples, optimizer steps and micro-batches."""
    from rlcore.config.rules import batch_size, samples_per_rollout

    recipe = loaded.recipe
    rollout, train, cp = recipe.rollout, recipe.train, recipe.parallel.cp
    samples, batch = samples_per_rollout(recipe), batch_size(recipe)
    length = (
        f"{train.steps:,} rollouts" if train.steps else f"{train.epochs} epochs" if train.epochs else "unsaid"
    )
    updates = samples // batch if batch else 0
    tokens = f"at most {train.max_tokens_per_gpu * cp:,} packed tokens"
    return [
        ("rollout", f"{rollout.prompts_per_step} prompts × {rollout.samples_per_prompt} = {samples:,} samples"),
        ("optimizer steps", f"{updates} per rollout, of {batch:,} samples"),
        *([("step", _shares(batch, placed.layout.dp))] if placed else []),
        ("length", length),
        ("micro-batch", f"{tokens} ({train.max_tokens_per_gpu:,} × cp {cp})" if cp > 1 else tokens),
        ("response", f"at most {rollout.max_response_tokens:,} tokens"),
    ]


def _shares(batch: int, dp: int) -> str:
    """Samples of one optimizer step on each data parallel rank; ranks are balanced by cost, not by count."""
    if batch < dp:
        return f"{batch:,} samples for {dp} data parallel ranks: {dp - batch} have none and wait"
    about = f"about {batch // dp:,} of {batch:,} samples" if dp > 1 else f"{batch:,} samples"
    return f"{about} on each data parallel rank (dp {dp})"


def _notes(loaded: "LoadedRecipe") -> list[Problem]:
    """What does not make the recipe wrong, but keeps it from running here and now."""
    from rlcore.config.checkpoint import is_here, is_hub_id
    from rlcore.config.checks import located, missing_checkpoints, missing_data
    from rlcore.config.support import unbuilt

    checkpoint, notes = loaded.recipe.model.checkpoint, []
    if not is_here(checkpoint):
        notes = [*missing_data(loaded.recipe), *missing_checkpoints(loaded.recipe)]
        if is_hub_id(checkpoint):  # `check` reports a folder that is not there
            remedy = f"hf download {checkpoint} --local-dir FOLDER, then --set model.checkpoint=FOLDER"
            notes.insert(0, Problem("model.checkpoint", f"{checkpoint!r} is not on this machine", remedy))
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
