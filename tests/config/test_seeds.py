"""docs/seeds.md, row by row: what a flag of a published recipe became, and that it still is."""

import functools
import re
from pathlib import Path

import pytest

from rlcore.config.checks import native_problems
from rlcore.config.fields import all_keys
from rlcore.config.load import load_recipe
from rlcore.config.tree import parse
from rlcore.layout.plan import size_problems

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8")
BASE = "model: {checkpoint: some/model}\ndata: {path: x.jsonl}\nrewards: [exact]\ntrain: {steps: 1}\n"


def sections():
    """Title and rows (cells of a Markdown table) of each section of the page."""
    for section in PAGE.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")
        ]
        yield title, rows[2:]


def settings(rows):
    """The (key, value as YAML) of each row whose second cell is one."""
    matches = [re.fullmatch(r"`([\w.]+): (.*)`", row[1]) for row in rows]
    return [(match[1], match[2]) for match in matches if match]


def published(rows):
    """Whether a section's table names a test for each row: it is then a shipped recipe's."""
    return all(len(row) == 3 for row in rows)


ALL = dict(sections())
PUBLISHED = {title: rows for title, rows in ALL.items() if published(rows)}
SECTIONS = {title: rows for title, rows in ALL.items() if title not in PUBLISHED}
SHIPPED = dict(re.findall(r"\n## (.*)\n\nThe recipe `(\S+)` has every one of these values", PAGE))
CASES = [(SHIPPED[title], key, text) for title, rows in PUBLISHED.items() for key, text in settings(rows)]


@pytest.fixture(scope="module")
def shipped():
    """Gives the values of a shipped recipe, which is loaded once."""
    return functools.cache(lambda name: load_recipe(name).recipe.model_dump(mode="json"))


@pytest.mark.parametrize(("name", "key", "text"), CASES, ids=lambda cell: cell)
def test_the_shipped_recipe_has_the_published_value(shipped, name, key, text):
    value = shipped(name)
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    assert value == parse(text, str).plain()


def test_every_test_that_the_page_names_exists():
    cells = [row[2] for rows in PUBLISHED.values() for row in rows]
    named = {path for cell in cells for path in re.findall(r"`(\S+\.py)`", cell)}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("title", SECTIONS)
def test_the_flags_of_a_published_recipe_validate_together(title, write):
    overrides = [f"{key}={text}" for key, text in settings(SECTIONS[title])]
    recipe = load_recipe(write(BASE), overrides).recipe
    assert list(native_problems(recipe)) == []
    assert list(size_problems(recipe)) == []


def test_every_key_that_the_page_names_exists():
    known = set(all_keys())
    free = ("megatron.", "sglang.args.", ".overrides.", "cluster.env.", "loss.options.")
    keys = [key for rows in ALL.values() for key, _ in settings(rows)]
    plain = {re.sub(r"\.\d+", "", key) for key in keys if not any(part in key for part in free)}
    assert plain - known == set()
    assert len(keys) > 130
