import pytest
import torch
from rlcore_glm47_flash.bridge import flash_bridge
from rlcore_glm47_flash.spec import flash_spec

from rlcore.config.schema import Model, Optimizer, Recompute
from rlcore.data.train_sample import TrainSample
from rlcore.models.hf_config import read_hf_config
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer


@pytest.fixture
def gradients(megatron, make_checkpoint):
    """Gives the loss and the gradients of a few samples; keywords go to Trainer, `dtype` to its model."""
    folder = make_checkpoint()
    spec = flash_spec(read_hf_config(folder))
    generator = torch.Generator().manual_seed(0)
    samples = [
        TrainSample(
            name=f"sample {number}",
            tokens=torch.randint(spec.vocab_size, (20 + number,), generator=generator).tolist(),
            prompt_length=5,
            loss_mask=[1.0] * (15 + number),
        )
        for number in range(4)
    ]

    def run(dtype="float32", **keywords):
        model = Model(checkpoint=str(folder), dtype=dtype)
        trainer = Trainer(spec, flash_bridge(spec), folder, model=model, max_tokens_per_gpu=50, **keywords)
        trainer.prepare_optimizer(Optimizer(), total_steps=1)
        loss = trainer.backward(samples, SftObjective())["loss"]
        return loss, [parameter.main_grad.clone() for parameter in trainer.stages[0].parameters()]

    return run


@pytest.mark.parametrize(
    "recompute",
    [Recompute(granularity="full"), Recompute(granularity="selective", modules=["mla_up_proj"])],
    ids=["layers", "what latents are made into"],
)
def test_computing_again_what_was_not_kept_changes_no_bit(gradients, recompute):
    (loss, kept), (again, recomputed) = gradients(), gradients(recompute=recompute)
    assert loss == again
    assert all(map(torch.equal, kept, recomputed))


def test_bfloat16_trains_with_a_loss_like_that_of_float32(gradients):
    loss, _ = gradients("bfloat16")
    assert loss == pytest.approx(gradients()[0], rel=2e-3)
