import pytest
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

from rlcore.config.schema import Model, Optimizer
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local import LocalEngine
from rlcore.testing.agreement import largest_gap, sample_responses, send_weights
from rlcore.testing.routers import choice_margins
from rlcore.trainer.objectives import SftObjective
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
    samples = sample_responses(engine, vocab_size=spec.vocab_size)
    with choice_margins() as margins:
        assert largest_gap(trainer, samples) <= 1e-5

        trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=3)
        for _ in range(3):
            trainer.train_step(samples, SftObjective())
        send_weights(trainer, engine, version=1)
        assert largest_gap(trainer, sample_responses(engine, vocab_size=spec.vocab_size)) <= 1e-5
    assert min(margins) > 1e-6


def test_without_the_mending_they_would_not(folder, spec, trainer):
    assert largest_gap(trainer, sample_responses(LocalEngine(folder), vocab_size=spec.vocab_size)) > 1e-5
