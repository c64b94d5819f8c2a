"""What a plan says of memory; `tests/trainer/test_offload.py` holds it against what a trainer really has."""

import pytest

from rlcore.config.load import read_recipe
from rlcore.layout.memory import held, memory_facts
from rlcore.layout.model import place_loaded
from rlcore.registry import Catalog


@pytest.fixture
def planned():
    def plan(name, *overrides):
        loaded = read_recipe(name, list(overrides))
        placed, problems = place_loaded(loaded, Catalog.installed())
        assert problems == []
        return loaded.recipe, placed

    return plan


def test_a_rank_holds_its_share_of_weights_and_of_states(planned):
    recipe, placed = planned("glm4/glm-z1-9b")
    own = held(recipe, placed)
    each = placed.spec.parameters / recipe.parallel.tp
    assert (own.weights, own.gradients) == (2 * each, 4 * each)
    assert own.states == 12 * each / recipe.parallel.cp


def test_experts_are_shared_by_ranks_of_their_own(planned):
    recipe, placed = planned("glm45/glm4.5-355b")
    ranks = placed.layout.pp * placed.layout.ep
    assert held(recipe, placed).weights == pytest.approx(2 * placed.spec.parameters / ranks, rel=0.15)


def test_shared_gpus_belong_to_one_after_the_other(planned):
    facts = dict(memory_facts(*planned("glm47_flash/glm4.7-flash")))
    assert facts["while training"] == "the policy"
    assert facts["while weights are sent"] == "11.3 GB of the policy, and the engines' weights"
    assert facts["while generating"] == "the engines"
    assert facts["policy, host memory of a node"] == "449.5 GB"


def test_where_nobody_leaves_both_are_there_all_the_time(planned):
    facts = dict(memory_facts(*planned("glm47_flash/glm4.7-flash", "rollout.mode=one_step")))
    assert facts["while training"] == "the policy, and the engines"
    assert facts["while generating"] == "the engines, and 33.8 GB of the policy"
