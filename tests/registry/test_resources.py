"""Resources: package folders and recipes, found without running a line of the package."""

import sys

import pytest

from rlcore.errors import RlcoreError
from rlcore.registry import Catalog
from rlcore.registry.resources import recipes


@pytest.fixture
def shipped(distribution, site):
    """A distribution whose package must not be imported, with two recipes."""
    distribution("test-one", "[rlcore.resources]\nfamily = family_package\nnested = family_package.data")
    folder = site / "family_package"
    (folder / "recipes").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "recipes" / "tiny.yaml").write_text("# Learns to add in minutes.\nname: tiny\n")
    (folder / "recipes" / "large.yaml").write_text("name: large\n")
    return folder


def test_package_folders_are_found_without_an_import(shipped):
    folders = Catalog.installed().resources()
    assert folders["family"] == shipped
    assert folders["nested"] == shipped / "data"
    assert "family_package" not in sys.modules


def test_recipes_are_named_by_resource_and_file(shipped):
    shipped_by_all = recipes(Catalog.installed().resources())
    found = {one.name: one for one in shipped_by_all if one.name.startswith("family/")}
    assert list(found) == ["family/large", "family/tiny"]
    assert found["family/tiny"].path == shipped / "recipes" / "tiny.yaml"
    assert found["family/tiny"].summary == "Learns to add in minutes."
    assert found["family/large"].summary == ""


def test_a_package_that_is_gone_ships_nothing(distribution):
    distribution("test-one", "[rlcore.resources]\ngone = no_such_package")
    assert "gone" not in Catalog.installed().resources()


def test_resources_are_not_loaded(shipped):
    with pytest.raises(RlcoreError, match="resources are read by path"):
        Catalog.installed().load("resource", "family")
