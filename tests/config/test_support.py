"""No key of a recipe is decoration: code reads it, `train` refuses it, or a reason stands here."""

import ast
from pathlib import Path

from pydantic import BaseModel

import rlcore
from rlcore.config.load import load_recipe
from rlcore.config.schema import Recipe
from rlcore.config.support import unbuilt

CORE = Path(rlcore.__file__).parent
# By the key whose value gives them a meaning, and which `train` refuses.
REFUSED_WITH = {
    "rollout.engine": {
        "args",
        "worker_type",
        "num_gpus_per_engine",
        "model_path",
        "update_weights",
        "python",
        "urls",
        "router",
        "gpus_per_engine",
    },
    "cluster.colocate": {"offload_train", "offload_rollout"},
}
READ_BY_BATCH_SIZE = {"global_batch_size", "updates_per_rollout"}
HARMLESS = {
    "verify": "engine and trainer are compared on every step's own samples, whatever it says",
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
        if path.parent != CORE / "config" or path.name == "support.py":
            tree = ast.parse(path.read_text())
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return read


def test_every_key_is_read_refused_or_harmless():
    excepted = set().union(*REFUSED_WITH.values(), READ_BY_BATCH_SIZE, HARMLESS)
    assert set(keys(Recipe, set())) - read_outside_config() - excepted == set()


def test_no_exception_is_made_for_a_key_that_does_not_exist():
    assert set().union(*REFUSED_WITH.values(), READ_BY_BATCH_SIZE, HARMLESS) <= set(keys(Recipe, set()))


def test_the_keys_that_give_meaning_to_unread_ones_are_refused():
    refusals = (CORE / "config/support.py").read_text()
    assert [key for key in REFUSED_WITH if f'"{key}"' not in refusals] == []


def test_the_size_of_a_batch_is_read_by_the_loop():
    assert "batch_size(self._recipe)" in (CORE / "controller/grpo.py").read_text()


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
