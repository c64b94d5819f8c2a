"""docs/seeds.md, row by row: what a flag of a published recipe became, and that it still is."""

import re
from pathlib import Path

import pytest

from rlcore.config.checks import native_problems
from rlcore.config.fields import all_keys
from rlcore.config.load import load_recipe
from rlcore.config.tree import parse
from rlcore.layout.plan import size_problems
from rlcore.registry import Catalog
from rlcore.registry.resources import recipes

ROOT = Path(__file__).parents[2]
SHIPPED = next(recipe.name for recipe in recipes(Catalog.installed()) if recipe.name.endswith("z1-9b"))
BASE = "model: {checkpoint: some/model}\ndata: {path: x.jsonl}\nrewards: [exact]\ntrain: {steps: 1}\n"


def sections():
    """Title and rows (cells of a Markdown table) of each section of the page."""
    page = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")
        ]
        yield title, rows[2:]


def settings(rows):
    """The (key, value as YAML) of each row whose second cell is one."""
    matches = [re.fullmatch(r"`([\w.]+): (.*)`", row[1]) for row in rows]
    return [(match[1], match[2]) for match in matches if match]


SECTIONS = dict(sections())
PUBLISHED = SECTIONS.pop("GLM-Z1-9B")


@pytest.mark.parametrize(("key", "text"), settings(PUBLISHED), ids=lambda cell: cell)
def test_the_shipped_recipe_has_the_published_value(key, text):
    recipe = load_recipe(SHIPPED).recipe.model_dump(mode="json")
    for name in key.split("."):
        recipe = recipe[int(name)] if isinstance(recipe, list) else recipe[name]
    assert recipe == parse(text, str).plain()


def test_every_test_that_the_page_names_exists():
    named = {path for row in PUBLISHED for path in re.findall(r"`(\S+\.py)`", row[2])}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("title", SECTIONS)
def test_the_flags_of_a_published_recipe_validate_together(title, write):
    overrides = [f"{key}={text}" for key, text in settings(SECTIONS[title])]
    recipe = load_recipe(write(BASE), overrides).recipe
    assert list(native_problems(recipe)) == []
    assert list(size_problems(recipe)) == []


def test_every_key_that_the_page_names_exists():
    known = set(all_keys())
    free = ("megatron", "rollout.sglang.args", "model.overrides", "cluster.env", "loss.options")
    keys = [key for rows in (PUBLISHED, *SECTIONS.values()) for key, _ in settings(rows)]
    plain = {re.sub(r"\.\d+", "", key) for key in keys if not key.startswith(free)}
    assert plain - known == set()
    assert len(keys) > 130
