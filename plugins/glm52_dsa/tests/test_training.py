import pytest
import torch
from rlcore_glm52_dsa import attention
from rlcore_glm52_dsa.bridge import dsa_bridge
from rlcore_glm52_dsa.spec import dsa_spec

from rlcore.config.schema import MTP, Model, Optimizer, Recompute
from rlcore.data.train_sample import TrainSample
from rlcore.models.hf_config import read_hf_config
from rlcore.testing.tiny import tiny_mtp_layer
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer


@pytest.fixture
def checkpoint(megatron, make_checkpoint):
    folder = make_checkpoint(num_nextn_predict_layers=1, indexer_types=["full", "shared", "full", "full"])
    tiny_mtp_layer(folder, jitter=0.05)
    return folder


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return [
        TrainSample(
            name=f"sample {number}",
            tokens=torch.randint(499, (40 + number,), generator=generator).tolist(),
            prompt_length=5,
            loss_mask=[1.0] * (35 + number),
        )
        for number in range(4)
    ]


@pytest.fixture
def trainer(checkpoint):
    """Makes a trainer with one sample in each micro-batch; keywords go to Trainer, `dtype` to its model."""

    def make(dtype="float32", **keywords):
        spec = dsa_spec(read_hf_config(checkpoint))
        model = Model(checkpoint=str(checkpoint), dtype=dtype)
        mtp = MTP(num_layers=1, train=True)
        made = Trainer(
            spec, dsa_bridge(spec), checkpoint, model=model, mtp=mtp, max_tokens_per_gpu=50, **keywords
        )
        made.prepare_optimizer(Optimizer(lr=1e-2, weight_decay=0.5), total_steps=2)
        return made

    return make


@pytest.fixture
def gradients(trainer, samples):
    """Gives the loss and the gradients of the samples; keywords are those of `trainer`."""

    def run(*args, **keywords):
        made = trainer(*args, **keywords)
        loss = made.backward(samples, SftObjective())["loss"]
        return loss, [p.main_grad.clone() for p in made.stages[0].parameters() if p.requires_grad]

    return run


RECOMPUTED = {
    "layers": Recompute(granularity="full"),
    "attention": Recompute(granularity="selective", modules=["core_attn"]),
    "what latents are made into": Recompute(granularity="selective", modules=["mla_up_proj", "moe"]),
}


@pytest.mark.parametrize("recompute", RECOMPUTED.values(), ids=RECOMPUTED)
def test_computing_again_what_was_not_kept_changes_no_bit(gradients, recompute):
    (loss, kept), (again, recomputed) = gradients(), gradients(recompute=recompute)
    assert loss == again
    assert all(map(torch.equal, kept, recomputed))


@pytest.mark.parametrize("recompute", [Recompute(), RECOMPUTED["layers"]], ids=["kept", "recomputed"])
def test_an_indexer_chooses_once_for_each_micro_batch(gradients, monkeypatch, recompute):
    calls = []
    choose = attention.SparseLatentAttention._select

    def count(self, *args):
        calls.append(self.source)
        return choose(self, *args)

    monkeypatch.setattr(attention.SparseLatentAttention, "_select", count)
    gradients(recompute=recompute)
    # Four micro-batches; layer 4 is that of multi-token prediction.
    assert sorted(calls) == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_indexers_keep_their_weights_and_take_no_memory_for_learning(trainer, samples):
    made = trainer()
    before = {name: weight.clone() for name, weight in dict(made.exporter).items()}
    made.train_step(samples, SftObjective())
    after = dict(made.exporter)
    frozen = {name for name in before if ".indexer." in name}
    assert len(frozen) == 4 * 5
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    biases = {name for name in before if name.endswith("e_score_correction_bias")}
    assert not any(torch.equal(before[name], after[name]) for name in before.keys() - frozen - biases)
    indexers = [p for name, p in made.stages[0].named_parameters() if ".indexer." in name]
    assert not any(hasattr(parameter, "main_grad") for parameter in indexers)


def test_bfloat16_trains_with_a_loss_like_that_of_float32(gradients):
    loss, _ = gradients("bfloat16")
    assert loss == pytest.approx(gradients()[0], rel=2e-3)
