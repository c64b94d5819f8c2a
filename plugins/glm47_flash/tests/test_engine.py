import pytest
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

from rlcore.config.schema import Model
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local import LocalEngine
from rlcore.testing.agreement import gaps_around_training, largest_gap, sample_responses
from rlcore.testing.routers import choice_margins
from rlcore.trainer.trainer import Trainer


@pytest.fixture
def folder(make_checkpoint):
    return make_checkpoint(num_nextn_predict_layers=1)


@pytest.fixture
def spec(folder):
    return flash_spec(read_hf_config(folder))


@pytest.fixture
def trainer(megatron, folder, spec):
    return Trainer(spec, flash_bridge(spec), folder, model=Model(checkpoint=str(folder), dtype="float32"))


def test_engine_and_trainer_agree_before_and_after_training(folder, spec, trainer):
    engine = LocalEngine(folder, mend=spec.mend_transformers)
    with choice_margins() as margins:
        before, after = gaps_around_training(trainer, engine, vocab_size=spec.vocab_size)
    assert min(margins) > 1e-6
    assert max(before, after) <= 1e-5


def test_without_the_mending_they_would_not(folder, spec, trainer):
    assert largest_gap(trainer, sample_responses(LocalEngine(folder), vocab_size=spec.vocab_size)) > 1e-5
