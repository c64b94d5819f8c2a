"""Multi-token prediction in the trainer: who learns from its loss, what that is, and what is reported of it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec

from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.config.schema import MTP, Algorithm, Model, Optimizer, Recompute
from rlcore.errors import RlcoreError
from rlcore.models.attention import PackedSequences
from rlcore.models.forward import forward_hidden, forward_mtp, output_weight
from rlcore.testing.tiny import tiny_checkpoint, tiny_mtp_layer
from rlcore.trainer.drafts import Drafts, rates
from rlcore.trainer.objectives import PolicyObjective, SftObjective
from rlcore.trainer.trainer import Trainer

CONFIG = {
    "model_type": "glm4_moe",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "max_position_embeddings": 256,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "use_qk_norm": True,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 0,
}
LENGTHS = [(5, 9), (1, 17), (8, 4), (2, 30)]
POLICY = PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm(entropy_coefficient=0.01))
TRAINED = MTP(num_layers=1, train=True)
OPTIMIZER = Optimizer(lr=1e-3, weight_decay=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("drafting") / "model"
    tiny_checkpoint(path, CONFIG, jitter=0.05)
    tiny_mtp_layer(path, jitter=0.05)
    return path


@pytest.fixture
def make_drafting(folder):
    """Gives a trainer, ready to train, of a model with an MTP layer; keywords go to Trainer."""

    def make(mtp=TRAINED, dtype="float32", **keywords) -> Trainer:
        spec = glm45_spec(CONFIG)
        model = Model(checkpoint=str(folder), dtype=dtype)
        trainer = Trainer(spec, glm45_bridge(spec), folder, model=model, mtp=mtp, **keywords)
        trainer.prepare_optimizer(OPTIMIZER, total_steps=30)
        return trainer

    return make


def gradients(trainer):
    found = {}
    for name, parameter in trainer.stages[0].named_parameters():
        if parameter.requires_grad:
            found[name] = parameter.main_grad.clone()
    return found


def split(gradients):
    mtp = {name: g for name, g in gradients.items() if name.startswith("mtp.")}
    return mtp, {name: g for name, g in gradients.items() if name not in mtp}


def test_only_mtp_layers_learn_from_their_loss(make_drafting, make_samples):
    samples = make_samples(LENGTHS)
    found = []
    for mtp in (MTP(), TRAINED, TRAINED.model_copy(update={"loss_scaling_factor": 0.4})):
        trainer = make_drafting(mtp)
        trainer.backward(samples, POLICY)
        found.append(split(gradients(trainer)))
    (no_layers, without), (layers, beside), (doubled, again) = found
    assert not no_layers
    for others in (beside, again):
        assert all(torch.equal(without[name], others[name]) for name in without)
    assert all(gradient.abs().max() > 0 for gradient in layers.values())
    for name, gradient in layers.items():
        torch.testing.assert_close(doubled[name], 2 * gradient, msg=name)


def test_a_policy_that_learns_nothing_leaves_all_else_as_it_is(make_drafting, make_samples):
    trainer = make_drafting()
    before = {name: tensor.clone() for name, tensor in trainer.exporter}
    samples = make_samples(LENGTHS, advantages=None)
    samples = [replace(s, advantages=[0.0] * s.response_length) for s in samples]
    trainer.train_step(samples, PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm()))
    changed = {name for name, tensor in trainer.exporter if not torch.equal(before[name], tensor)}
    assert changed
    assert all(name.startswith("model.layers.2.") for name in changed)


def test_loss_and_acceptance_are_those_of_whole_logits(make_drafting, make_samples):
    samples = make_samples(LENGTHS)
    trainer = make_drafting(temperature=0.7)
    metrics = trainer.backward(samples, SftObjective())
    (model,) = trainer.stages
    lost, weight, kept, counted = 0.0, 0.0, 0.0, 0.0
    for sample in samples:
        tokens_1t = torch.tensor(sample.tokens)[None]
        sequences = PackedSequences.of([len(sample.tokens)])
        with torch.no_grad():
            hidden = forward_hidden(model, tokens_1t, sequences)
            (mtp_hidden,) = forward_mtp(model, hidden, tokens_1t, sequences)
            logits = (torch.stack([hidden, mtp_hidden])[:, :, 0] @ output_weight(model).T) / 0.7
        policy_tv, mtp_tv = logits.log_softmax(-1)
        for place in range(max(sample.prompt_length, 2), len(sample.tokens)):
            token, mask = sample.tokens[place], sample.loss_mask[place - sample.prompt_length]
            p, q = policy_tv[place - 1, token], mtp_tv[place - 2, token]
            lost, weight = lost - mask * q, weight + mask
            kept, counted = kept + mask * min(1.0, (q - p).exp()), counted + mask
    assert metrics["mtp/loss"] == pytest.approx(float(lost / weight), rel=1e-5)
    assert metrics["mtp/acceptance"] == pytest.approx(float(kept / counted), rel=1e-5)


def test_acceptance_is_what_speculative_sampling_keeps():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, generator=generator).softmax(-1)
    tokens = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    ones = torch.ones(len(tokens))
    drafts = Drafts(q.log()[tokens][None], ones[None])
    found = rates({name: float(x) for name, x in drafts.sums(p.log()[tokens], ones, ones).items()})
    assert found["mtp/acceptance"] == pytest.approx(float(torch.minimum(p, q).sum()), abs=5e-3)


def test_packing_changes_nothing(make_drafting, make_samples):
    samples = make_samples(LENGTHS)
    found = []
    for cap, order in ((1000, samples), (33, samples[::-1]), (1, samples)):
        trainer = make_drafting(max_tokens_per_gpu=cap)
        metrics = trainer.backward(order, POLICY)
        found.append((metrics, gradients(trainer)))
    (whole, expected), *others = found
    assert [metrics["micro_batches"] for metrics, _ in found] == [1, 3, 4]
    for metrics, parts in others:
        for name in ("loss", "grad_norm", "mtp/loss", "mtp/acceptance"):
            assert metrics[name] == pytest.approx(whole[name], rel=1e-5), name
        for name, gradient in parts.items():
            assert (gradient - expected[name]).abs().max() <= 2e-6 * expected[name].abs().max(), name


def test_drafts_get_better(make_drafting, make_samples):
    trainer = make_drafting(MTP(num_layers=1, train=True, loss_scaling_factor=1.0))
    samples = make_samples(LENGTHS, advantages=None, old_log_probs=None)
    rows = [trainer.train_step(samples, SftObjective()) for _ in range(20)]
    assert rows[0]["mtp/loss"] == pytest.approx(math.log(131), rel=0.1)
    assert rows[-1]["mtp/loss"] < rows[0]["mtp/loss"] - 0.5


def test_a_frozen_layer_is_measured_and_has_no_optimizer(make_drafting, make_samples):
    trainer = make_drafting(MTP(num_layers=1, train=False))
    before = {name: tensor.clone() for name, tensor in trainer.exporter}
    metrics = trainer.train_step(make_samples(LENGTHS), POLICY)
    assert 0 < metrics["mtp/acceptance"] < 1
    names = {name for name, tensor in trainer.exporter if not torch.equal(before[name], tensor)}
    assert names
    assert not any(name.startswith("model.layers.2.") for name in names)
    assert not any(parameter.requires_grad for parameter in trainer.stages[0].mtp.parameters())
    assert not any(hasattr(parameter, "main_grad") for parameter in trainer.stages[0].mtp.parameters())


def test_gradients_may_be_sent_while_others_are_computed(make_drafting, make_samples):
    found = []
    for overlap in (False, True):
        trainer = make_drafting(megatron={"overlap_grad_reduce": overlap}, max_tokens_per_gpu=33)
        found.append(trainer.backward(make_samples(LENGTHS), POLICY)["grad_norm"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "recompute",
    [Recompute(granularity="full"), Recompute(granularity="selective", modules=["core_attn", "moe"])],
    ids=lambda recompute: recompute.granularity,
)
def test_recomputation_changes_no_gradient(make_drafting, make_samples, recompute):
    found = []
    for how in (None, recompute):
        trainer = make_drafting(recompute=how)
        trainer.backward(make_samples(LENGTHS), POLICY)
        found.append(gradients(trainer))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_log_probs_need_no_mtp_layer(make_drafting, make_samples):
    samples = make_samples(LENGTHS)
    trainer, plain = make_drafting(), make_drafting(MTP())
    with torch.no_grad():
        for parameter in trainer.stages[0].mtp.parameters():
            parameter.fill_(math.nan)
    for index, log_probs_t in trainer.log_probs(samples).items():
        assert torch.equal(log_probs_t, plain.log_probs(samples)[index])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_continues_bit_for_bit(make_drafting, make_samples, tmp_path, dtype):
    batches = [make_samples(LENGTHS, seed=seed) for seed in range(3)]
    whole, resumed = make_drafting(dtype=dtype), make_drafting(dtype=dtype)
    whole.train_step(batches[0], POLICY)
    whole.save(tmp_path / "state")
    expected = [whole.train_step(batch, POLICY) for batch in batches[1:]]
    assert resumed.load(tmp_path / "state")
    assert [resumed.train_step(batch, POLICY) for batch in batches[1:]] == expected


def test_a_checkpoint_without_the_layer_is_refused(tmp_path):
    path = tmp_path / "model"
    tiny_checkpoint(path, CONFIG)
    spec = glm45_spec(CONFIG)
    with pytest.raises(RlcoreError, match=r"mtp\.layers\.0\.eh_proj\.weight needs model\.layers\.2\.eh_proj"):
        Trainer(spec, glm45_bridge(spec), path, model=Model(checkpoint=str(path)), mtp=TRAINED)
