import pytest
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec

from rlcore.config.schema import Model, Optimizer
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local import LocalEngine
from rlcore.testing.agreement import sample_responses, send_weights
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer


@pytest.fixture
def folder(make_checkpoint):
    return make_checkpoint(num_nextn_predict_layers=1)


@pytest.fixture
def spec(folder):
    return dsa_spec(read_hf_config(folder))


@pytest.fixture
def engine(folder, spec):
    return LocalEngine(folder, mend=spec.mend_transformers, serve=spec.serve_transformers)


@pytest.fixture
def trainer(megatron, folder, spec):
    trainer = Trainer(spec, dsa_bridge(spec), folder, model=Model(checkpoint=str(folder), dtype="float32"))
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=3)
    return trainer


def test_engine_and_trainer_select_the_same_and_agree_before_and_after_training(spec, engine, trainer):
    for version in range(3):
        samples = sample_responses(engine, vocab_size=spec.vocab_size)
        metrics = trainer.train_step(samples, SftObjective())
        assert metrics["dsa/selection_flips"] == 0.0
        assert metrics["logprob_gap/max"] <= 1e-5
        send_weights(trainer, engine, version=version)
