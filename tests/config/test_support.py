"""No key of a recipe is decoration: code reads it, or `train` refuses it."""

import ast
from pathlib import Path

from pydantic import BaseModel

import rlcore
from rlcore.config.load import load_recipe
from rlcore.config.schema import Recipe
from rlcore.config.support import unbuilt

CORE = Path(rlcore.__file__).parent
# Modules of the configuration that do more than judge it.
ACTING = ("support.py", "served_models.py")
# Read by a rule of the recipe, which the loop asks.
READ_BY = {
    "global_batch_size": "batch_size",
    "updates_per_rollout": "batch_size",
    "offload_rollout": "offloads_rollout",
    "offload_train": "offloads_train",
}


def keys(section, seen):
    """Every leaf key of a section and of those below it."""
    for name, field in section.model_fields.items():
        below = [kind for kind in sections(field.annotation) if kind not in seen]
        for kind in below:
            seen.add(kind)
            yield from keys(kind, seen)
        if not sections(field.annotation):
            yield name


def sections(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in sections(part)]


def read_outside_config():
    """Names of all attributes that code reads, except what only judges recipes; what `train` refuses counts."""
    read = set()
    for path in CORE.rglob("*.py"):
        if path.parent != CORE / "config" or path.name in ACTING:
            tree = ast.parse(path.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return read


def test_every_key_is_read_or_refused():
    assert set(keys(Recipe, set())) - read_outside_config() == READ_BY.keys()


def test_rules_that_read_keys_are_asked_by_the_loop():
    loop = "".join((CORE / f"controller/{name}.py").read_text() for name in ("grpo", "turns"))
    assert all(f"{rule}(" in loop for rule in READ_BY.values())


def test_sending_tokens_by_deepep_is_refused_where_it_is_not_installed(write, monkeypatch):
    recipe = "model: {checkpoint: some/model}\nmegatron: {moe_token_dispatcher_type: flex}\n"
    loaded = load_recipe(write(recipe))
    monkeypatch.setattr("rlcore.config.support.find_spec", lambda name: None)
    (problem,) = unbuilt(loaded)
    assert problem.place.endswith(":2 (megatron.moe_token_dispatcher_type)")
    assert "needs the package deep_ep, which is not installed" in problem.message
    assert problem.remedy.startswith("moe_token_dispatcher_type: alltoall")
    monkeypatch.setattr("rlcore.config.support.find_spec", lambda name: object())
    assert unbuilt(loaded) == []
