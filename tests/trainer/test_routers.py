"""What Megatron does for routers beside our loss, on the tiny mixture of experts of the parity suite."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.core.transformer.moe.router import TopKRouter

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
def make_trainer(tmp_path):
    """Make trainers of one checkpoint: their routers are trained to share tokens out evenly."""
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

    def make(**options):
        trainer = Trainer(spec, bridge, folder, model=model, **options)
        trainer.prepare_optimizer(Optimizer(), total_steps=1)
        return trainer

    return make


@pytest.fixture
def trainer(make_trainer):
    """Each sample is a micro-batch."""
    return make_trainer(max_tokens_per_gpu=1)


def gradients(trainer, samples):
    trainer.backward(samples, SftObjective())
    return {name: p.main_grad.clone() for name, p in trainer.stages[0].named_parameters()}


def biases(trainer):
    return torch.stack([bias for name, bias in trainer.stages[0].named_buffers() if "expert_bias" in name])


def test_routers_learn_from_means_as_the_policy_does(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    once, twice = gradients(trainer, samples), gradients(trainer, samples * 2)
    for name, gradient in once.items():
        assert (twice[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_expert_biases_move_with_the_weights_and_not_before(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)

    before = biases(trainer)
    trainer.backward(samples, SftObjective())
    assert torch.equal(biases(trainer), before)
    trainer.train_step(samples, SftObjective())
    assert (biases(trainer) - before).abs().max() == pytest.approx(1e-3, rel=1e-4)


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


def loads(metrics):
    return {name: value for name, value in metrics.items() if name.startswith("router/")}


def test_padding_counts_neither_as_load_nor_for_biases(make_trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    plain, padded = make_trainer(), make_trainer(pad_multiple=64)
    expected = loads(plain.train_step(samples, SftObjective()))
    assert loads(padded.train_step(samples, SftObjective())) == pytest.approx(expected)
    assert torch.equal(biases(padded), biases(plain))


def test_recomputed_layers_count_once(make_trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    expected = loads(make_trainer(pad_multiple=64).backward(samples, SftObjective()))
    full = Recompute(granularity="full", method="uniform", num_layers=1)
    recomputing = make_trainer(pad_multiple=64, recompute=full)
    assert loads(recomputing.backward(samples, SftObjective())) == pytest.approx(expected)


def test_a_step_reports_which_choices_are_the_correction_biases_doing(trainer, make_samples):
    samples = make_samples([(8, 22)], advantages=None, old_log_probs=None)
    routers = [module for module in trainer.stages[0].modules() if isinstance(module, TopKRouter)]
    for router in routers:
        router.expert_bias.copy_(0.2 * torch.randn(MOE["experts"], generator=torch.Generator().manual_seed(2)))
    changed = []

    def compare(router, inputs, outputs):
        scores_te = (inputs[0][:, 0] @ router.weight.T).sigmoid()
        best_te = torch.zeros_like(scores_te).scatter(1, scores_te.topk(router.topk).indices, 1.0)
        changed.append((outputs[1] & (best_te == 0)).sum() / outputs[1].sum())

    for router in routers:
        router.register_forward_hook(compare)
    metrics = trainer.backward(samples, SftObjective())
    assert 0.1 < metrics["router/corrected_share"] < 0.9
    assert metrics["router/corrected_share"] == pytest.approx(float(torch.stack(changed).mean()))
    for router in routers:
        router.expert_bias.zero_()
    assert trainer.backward(samples, SftObjective())["router/corrected_share"] == 0


def test_scoring_between_steps_does_not_count_as_load(trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    once = trainer.backward(samples, SftObjective())
    trainer.log_probs(samples)
    assert trainer.backward(samples, SftObjective()) == pytest.approx(once)


def test_padding_has_no_part_in_losses_of_routers(make_trainer, make_samples):
    samples = make_samples([(5, 9), (3, 17), (8, 4)], advantages=None, old_log_probs=None)
    plain, padded, without = (
        gradients(make_trainer(megatron={"moe_z_loss_coeff": z_loss}, pad_multiple=pad), samples)
        for z_loss, pad in ((0.1, 1), (0.1, 64), (None, 64))
    )
    for name, gradient in plain.items():
        assert (padded[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    assert any((plain[name] - without[name]).abs().max() > 1e-3 for name in plain if "router" in name)
