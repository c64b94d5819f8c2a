"""What Megatron does for routers beside our loss, on the tiny mixture of experts of the parity suite."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlcore.bridge.export import Exporter
from rlcore.bridge.safetensors_io import write_folder
from rlcore.config.schema import Model, Optimizer, Parallel, Recompute
from rlcore.models.build import build_model, transformer_config
from rlcore.trainer.choices import recorded_choices
from rlcore.trainer.objectives import SftObjective
from rlcore.trainer.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from moe import MOE, moe_bridge, moe_spec


@pytest.fixture
def trainer(tmp_path):
    """Its routers are trained to share tokens out evenly; each sample is a micro-batch."""
    spec = moe_spec(MOE)
    balance = {
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": 0.01,
        "moe_router_bias_update_rate": 1e-3,
    }
    spec = replace(spec, transformer_config={**spec.transformer_config, **balance})
    bridge = moe_bridge(spec)
    config = transformer_config(
        spec, parallel=Parallel(), dtype=torch.float32, recompute=Recompute(), megatron_overrides={}
    )
    stages = build_model(spec, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in stages[0].parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    folder = tmp_path / "experts"
    folder.mkdir()
    write_folder(folder, Exporter(stages, bridge), shard_bytes=2**30)
    model = Model(checkpoint=str(folder), dtype="float32")
    trainer = Trainer(spec, bridge, folder, model=model, max_tokens_per_gpu=1)
    trainer.prepare_optimizer(Optimizer(), total_steps=1)
    return trainer


def gradients(trainer, samples):
    trainer.backward(samples, SftObjective())
    return {name: p.main_grad.clone() for name, p in trainer.stages[0].named_parameters()}


def test_routers_learn_from_means_as_the_policy_does(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    once, twice = gradients(trainer, samples), gradients(trainer, samples * 2)
    for name, gradient in once.items():
        assert (twice[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_expert_biases_move_with_the_weights_and_not_before(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)

    def biases():
        return torch.stack([bias for name, bias in trainer.stages[0].named_buffers() if "expert_bias" in name])

    before = biases()
    trainer.backward(samples, SftObjective())
    assert torch.equal(biases(), before)
    trainer.train_step(samples, SftObjective())
    assert (biases() - before).abs().max() == pytest.approx(1e-3, rel=1e-4)


def test_a_step_reports_how_its_tokens_were_shared_out(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    with recorded_choices(trainer.stages[0]) as choices:
        metrics = trainer.backward(samples, SftObjective())
    routers = MOE["layers"] - 1
    counts_le = torch.stack(
        [
            torch.cat(choices[layer::routers]).flatten().bincount(minlength=MOE["experts"])
            for layer in range(routers)
        ]
    ).float()
    ratios_l = counts_le.amax(-1) / counts_le.mean(-1)
    assert counts_le.sum() == sum(len(sample.tokens) for sample in samples) * routers * MOE["experts_per_token"]
    assert metrics["router/max_load_over_mean"] == pytest.approx(float(ratios_l.mean()))
    assert metrics["router/max_load_over_mean_worst"] == pytest.approx(float(ratios_l.max()))
    assert metrics["router/load_min"] == counts_le.min()
    assert metrics["router/load_max"] == counts_le.max()
    assert metrics["router/unused_experts"] == (counts_le == 0).sum()


def test_scoring_between_steps_does_not_count_as_load(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    once = trainer.backward(samples, SftObjective())
    trainer.log_probs(samples)
    assert trainer.backward(samples, SftObjective()) == pytest.approx(once)
