"""docs/plugins.md: every kind of plugin has its section, and every example in it loads as it stands."""

import inspect
import re
from pathlib import Path

import pytest

from rlcore import hookspecs
from rlcore.registry import Catalog
from rlcore.registry.kinds import KINDS

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)$\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
HOOKS = [kind for kind in KINDS.values() if kind.result]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_has_a_section_with_its_group(kind):
    assert f"Group `{kind.group}`" in SECTIONS[kind.name]


@pytest.mark.parametrize("kind", HOOKS, ids=lambda kind: kind.name)
def test_every_hook_is_shown_with_its_signature(kind):
    (parameter,) = inspect.signature(getattr(hookspecs, kind.name)).parameters
    assert f"`{kind.name}({parameter}) -> {kind.result_name}`" in SECTIONS[kind.name]


@pytest.mark.parametrize("kind", HOOKS, ids=lambda kind: kind.name)
def test_every_example_loads(kind, distribution):
    (source,) = re.findall(r"```python\n(.*?)```", SECTIONS[kind.name], re.DOTALL)
    decorated = re.search(rf"@{kind.name}\b.*?def (\w+)", source, re.DOTALL)
    value = f"docs_example:{decorated[1]}" if decorated else "docs_example"
    distribution("docs-example", f"[{kind.group}]\nexample = {value}", docs_example=source)
    assert Catalog.installed().load(kind.name, "example").candidate.dist == "docs-example"
