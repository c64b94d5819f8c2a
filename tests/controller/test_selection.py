import pytest
from rlcore_glm4.demo import DEMO

from rlcore.config.load import load_recipe
from rlcore.controller.selection import select_algorithm, select_model
from rlcore.errors import RlcoreError
from rlcore.layout.model import place_model
from rlcore.registry import Catalog

PLUGINS = """
from rlcore.plugin import Advantages, advantage_estimator, hookimpl


@advantage_estimator(needs={"values"}, default_loss="clip")
def critic(batch):
    return Advantages(batch.values_t)


class Rule:
    @hookimpl
    def layout_validator(self, spec):
        return self

    def validate(self, layout):
        return []


house_rule = Rule()
"""
ENTRY_POINTS = """\
[rlcore.advantage_estimators]
critic = plugins_of_selection:critic
[rlcore.layout_validators]
house_rule = plugins_of_selection:house_rule
"""


@pytest.fixture
def outside(distribution):
    distribution("plugins-of-selection", ENTRY_POINTS, plugins_of_selection=PLUGINS)


def recipe(folder, text):
    file = folder / "recipe.yaml"
    file.write_text(f"base: glm4/tiny\nmodel: {{checkpoint: {folder}/model}}\n{text}\n")
    return load_recipe(str(file)).recipe


@pytest.mark.usefixtures("outside")
def test_an_estimator_that_needs_what_nobody_computes_is_refused(tmp_path):
    with pytest.raises(RlcoreError, match="'values', which is not built"):
        select_algorithm(Catalog.installed(), recipe(tmp_path, "advantage: critic"))


@pytest.mark.usefixtures("outside")
def test_the_layout_rules_of_a_recipe_are_among_the_plugins_of_the_run(tmp_path):
    DEMO.write(tmp_path)
    chosen, catalog = recipe(tmp_path, "layout_validators: [house_rule]"), Catalog.installed()
    plugins = select_model(catalog, chosen, place_model(chosen, catalog).spec).plugins
    assert [one.candidate.name for one in plugins] == ["glm4", "glm4", "glm4", "house_rule"]
