import pytest
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec

from rlcore.config.schema import Model
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local import LocalEngine
from rlcore.testing.agreement import gaps_around_training
from rlcore.testing.routers import choice_margins
from rlcore.trainer.trainer import Trainer


@pytest.mark.parametrize("changes", [{}, {"use_qk_norm": False, "num_attention_heads": 8}])
def test_engine_and_trainer_agree_before_and_after_training(megatron, make_checkpoint, changes):
    folder = make_checkpoint(**changes)
    spec = glm45_spec(read_hf_config(folder))
    trainer = Trainer(spec, glm45_bridge(spec), folder, model=Model(checkpoint=str(folder), dtype="float32"))
    engine = LocalEngine(folder, serve=spec.serve_transformers)
    with choice_margins() as margins:
        before, after = gaps_around_training(trainer, engine, vocab_size=spec.vocab_size)
    assert min(margins) > 1e-6
    assert max(before, after) <= 1e-5
