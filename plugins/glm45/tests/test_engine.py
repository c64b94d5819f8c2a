import pytest
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec

from rlcore.config.schema import Model, Optimizer
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local import LocalEngine
from rlcore.testing.agreement import largest_gap, sample_responses, send_weights
from rlcore.testing.routers import choice_margins
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer


@pytest.mark.parametrize("changes", [{}, {"use_qk_norm": False, "num_attention_heads": 8}])
def test_engine_and_trainer_agree_before_and_after_training(megatron, make_checkpoint, changes):
    folder = make_checkpoint(**changes)
    spec = glm45_spec(read_hf_config(folder))
    trainer = Trainer(spec, glm45_bridge(spec), folder, model=Model(checkpoint=str(folder), dtype="float32"))
    engine = LocalEngine(folder)
    samples = sample_responses(engine, vocab_size=spec.vocab_size)
    with choice_margins() as margins:
        assert largest_gap(trainer, samples) <= 1e-5

        trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=3)
        for _ in range(3):
            trainer.train_step(samples, SftObjective())
        send_weights(trainer, engine, version=1)
        assert largest_gap(trainer, sample_responses(engine, vocab_size=spec.vocab_size)) <= 1e-5
    assert min(margins) > 1e-6
