"""Models of layers that may start a stage and layers that need the one before them."""

import pytest

# It prepares Megatron, which some of these tests import, for those that train in the same process.
import rlcore.trainer  # noqa: F401
from rlcore.config.schema import Recipe
from rlcore.layout.model import Placeable
from rlcore.models.spec import LayerInfo, ModelSpec

# GLM-5.2: three layers, then one of four, choose the keys that those after them use too.
PUBLISHED = tuple(layer in {0, 1, 2, *range(6, 78, 4)} for layer in range(78))


@pytest.fixture(scope="session")
def published():
    """Which of 78 layers may start a stage."""
    return PUBLISHED


@pytest.fixture(scope="session")
def make_model():
    """Gives a model by which layers may start a stage and what each costs per token."""

    def make(starts, costs=None, rules=(), **fields):
        layers = tuple(
            LayerInfo(
                kind="dense", parameters=0, flops=lambda length, cost=cost: cost * length, may_start_stage=may
            )
            for may, cost in zip(starts, costs or [1] * len(starts), strict=True)
        )
        sizes = {"hidden_size": 1, "vocab_size": 1, "mtp_layers": (), **fields}
        spec = ModelSpec(
            model_type="toy",
            hf_config={},
            layers=layers,
            transformer_config={},
            model_args={},
            layer_specs=lambda config, stage: None,
            **sizes,
        )
        return Placeable(spec, tuple(rules))

    return make


@pytest.fixture(scope="session")
def make_recipe():
    """Gives a recipe for as few ranks as its sizes take."""

    def make(mtp_layers=0, **parallel):
        model = {"checkpoint": "toy"}
        return Recipe.model_validate({"model": model, "parallel": parallel, "mtp": {"num_layers": mtp_layers}})

    return make
