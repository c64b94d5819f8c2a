import dataclasses
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.config.schema import Algorithm, BadSteps, Optimizer
from rlcore.config.training import KL
from rlcore.errors import RlcoreError
from rlcore.trainer.checkpoint import load_weights
from rlcore.trainer.objectives import PolicyObjective, SftObjective
from rlcore.trainer.trainer import Trainer

LENGTHS = [(5, 9), (3, 17), (8, 4), (2, 30), (6, 12), (4, 1)]
OPTIMIZER = Optimizer(lr=1e-3, warmup_steps=0)


def policy(**algorithm) -> PolicyObjective:
    return PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm(**algorithm))


def reference_log_probs(checkpoint, samples, temperature=1.0):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    found = []
    for sample in samples:
        tokens = torch.tensor(sample.tokens)[None]
        logits = model(tokens).logits[0, sample.prompt_length - 1 : -1] / temperature
        found.append(logits.log_softmax(-1).gather(1, tokens[0, sample.prompt_length :, None])[:, 0])
    return model, found


def in_order(by_index):
    return [by_index[index] for index in range(len(by_index))]


def log_probs_of(trainer, samples):
    return in_order(trainer.log_probs(samples))


def gradients(trainer):
    return {name: p.main_grad.clone() for name, p in trainer.stages[0].named_parameters()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_transformers(checkpoint, make_trainer, make_samples, temperature):
    samples = make_samples(LENGTHS)
    found = log_probs_of(make_trainer(max_tokens_per_gpu=40, temperature=temperature), samples)
    _, expected = reference_log_probs(checkpoint, samples, temperature)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_sample_needs_a_prompt_and_a_response(make_trainer, make_samples):
    with pytest.raises(RlcoreError, match=r"sample 0.*\n.*sample 1"):
        make_trainer().log_probs(make_samples([(0, 4), (3, 0), (1, 1)]))


@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_loss_and_gradient_do_not_depend_on_how_samples_are_packed(make_trainer, make_samples, reduction):
    samples = make_samples(LENGTHS)
    objective = policy(reduction=reduction, entropy_coefficient=0.01)
    found = []
    for cap, order in ((1000, samples), (33, samples[::-1]), (1, samples)):
        trainer = make_trainer(max_tokens_per_gpu=cap)
        trainer.prepare_optimizer(OPTIMIZER.model_copy(update={"clip_grad": 0.0}), total_steps=10)
        found.append((trainer.train_step(order, objective), gradients(trainer)))
    (whole, whole_gradients), *others = found
    assert [metrics["micro_batches"] for metrics, _ in found] == [1, 4, 6]
    for metrics, parts in others:
        for name in ("loss", "pg_loss", "entropy", "clip_fraction", "grad_norm", "ratio_max", "tokens"):
            assert metrics[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-7), name
        for name, gradient in parts.items():
            expected = whole_gradients[name]
            assert (gradient - expected).abs().max() <= 2e-6 * expected.abs().max(), name


def test_samples_of_one_prompt_learn_together_what_they_learn_alone(make_trainer, make_samples):
    prompt, *others = make_samples([(20, 9), (20, 17), (20, 9), (7, 4)])
    siblings = [dataclasses.replace(s, tokens=[*prompt.tokens[:20], *s.tokens[20:]]) for s in others[:2]]
    samples = [prompt, *siblings, others[2]]
    found = []
    for cap in (1000, 1):
        trainer = make_trainer(max_tokens_per_gpu=cap)
        trainer.prepare_optimizer(OPTIMIZER, total_steps=10)
        found.append((log_probs_of(trainer, samples), trainer.backward(samples, policy()), gradients(trainer)))
    (log_probs, metrics, together), (expected, apart, alone) = found
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=5e-6)
    assert metrics["loss"] == pytest.approx(apart["loss"], rel=1e-5)
    assert metrics["tokens"] == apart["tokens"]
    for name, gradient in together.items():
        assert (gradient - alone[name]).abs().max() <= 2e-6 * alone[name].abs().max(), name


def test_the_gradient_of_grpo_is_that_of_a_plain_implementation(checkpoint, make_trainer, make_samples):
    samples = make_samples(LENGTHS)
    samples = [dataclasses.replace(s, ref_log_probs=s.old_log_probs) for s in samples]
    trainer = make_trainer()
    trainer.prepare_optimizer(OPTIMIZER, total_steps=10)
    metrics = trainer.train_step(samples, policy(kl=KL(loss_coefficient=0.1, estimator="k3")))

    model, log_probs = reference_log_probs(checkpoint, samples)
    losses = []
    for sample, new in zip(samples, log_probs, strict=True):
        old, advantage, mask = map(torch.tensor, (sample.old_log_probs, sample.advantages, sample.loss_mask))
        ratio = (new - old).exp()
        surrogate = torch.maximum(-ratio * advantage, -ratio.clamp(0.8, 1.2) * advantage)
        kl = (old - new).exp() - 1 - (old - new)
        losses.append(((surrogate + 0.1 * kl) * mask).sum() / mask.sum().clamp(min=1))
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    exported = dict(trainer.exporter)
    assert exported.keys() == dict(model.named_parameters()).keys()
    embedding = gradients(trainer)["embedding.word_embeddings.weight"]
    # Megatron clips in place, after the norm was taken.
    expected = model.model.embed_tokens.weight.grad * min(1.0, 1.0 / (norm.item() + 1e-6))
    assert (embedding - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_without_old_log_probs_the_current_ones_stand_in(make_trainer, make_samples):
    samples = make_samples(LENGTHS, old_log_probs=None)
    trainer = make_trainer()
    trainer.prepare_optimizer(OPTIMIZER, total_steps=10)
    current = log_probs_of(trainer, samples)
    metrics = trainer.train_step(samples, policy())
    assert metrics["ratio"] == pytest.approx(1.0)
    again = make_trainer()
    again.prepare_optimizer(OPTIMIZER, total_steps=10)
    explicit = [dataclasses.replace(s, old_log_probs=o) for s, o in zip(samples, current, strict=True)]
    assert again.train_step(explicit, policy())["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-5)


def test_the_gap_between_engine_and_trainer_counts_fresh_tokens_only(make_trainer, make_samples):
    trainer = make_trainer()
    trainer.prepare_optimizer(OPTIMIZER, total_steps=10)
    (sample,) = make_samples([(3, 4)], old_log_probs=None, loss_mask=[1, 1, 1, 1])
    (current,) = log_probs_of(trainer, [sample])
    engine = (current + torch.tensor([0.0, 0.25, -0.5, 8.0])).tolist()
    sample = dataclasses.replace(sample, rollout_log_probs=engine, fresh=[True, True, True, False])
    metrics = trainer.train_step([sample], policy())
    assert metrics["logprob_gap/max"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["logprob_gap/mean"] == pytest.approx(0.25, abs=1e-5)


def test_supervised_loss_falls(make_trainer, make_samples):
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(lr=5e-3), total_steps=20)
    samples = make_samples(LENGTHS, advantages=None, old_log_probs=None)
    losses = [trainer.train_step(samples, SftObjective())["loss"] for _ in range(20)]
    assert losses[0] == pytest.approx(-math.log(1 / 131), rel=0.2)
    assert losses[-1] < losses[0] / 2
    assert trainer.step == 20


def test_the_learning_rate_warms_up_and_decays(make_trainer, make_samples):
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(lr=1e-3, warmup_steps=2, schedule="linear"), total_steps=6)
    samples = make_samples([(3, 3)], advantages=None, old_log_probs=None)
    rates = [trainer.train_step(samples, SftObjective())["lr"] for _ in range(6)]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_a_warm_up_that_leaves_nothing_to_decay_is_refused(make_trainer):
    settings = Optimizer(warmup_steps=10, decay_steps=10, schedule="cosine")
    with pytest.raises(RlcoreError, match=r"optimizer\.decay_steps"):
        make_trainer().prepare_optimizer(settings, total_steps=20)


def test_a_short_trial_may_end_within_the_warm_up(make_trainer):
    make_trainer().prepare_optimizer(Optimizer(warmup_steps=10, schedule="cosine"), total_steps=3)


@pytest.mark.parametrize(
    ("dtype", "megatron"),
    [
        ("float32", {}),
        ("bfloat16", {}),
        # Gradients come in many buckets, with padding between them.
        ("float32", {"overlap_grad_reduce": True, "bucket_size": 5000}),
    ],
)
def test_a_resumed_run_continues_bit_for_bit(make_trainer, make_samples, tmp_path, dtype, megatron):
    batches = [make_samples(LENGTHS, seed=seed) for seed in range(4)]
    settings = Optimizer(lr=1e-3, warmup_steps=1, schedule="cosine")

    def start():
        trainer = make_trainer(dtype=dtype, megatron=megatron)
        trainer.prepare_optimizer(settings, total_steps=4)
        return trainer

    whole = start()
    for batch in batches[:2]:
        whole.train_step(batch, policy())
    whole.save(tmp_path / "state")
    expected = [whole.train_step(batch, policy()) for batch in batches[2:]]
    resumed = start()
    resumed.load(tmp_path / "state")
    assert resumed.step == 2
    assert [resumed.train_step(batch, policy()) for batch in batches[2:]] == expected
    for (name, ours), (_, theirs) in zip(resumed.exporter, whole.exporter, strict=True):
        assert torch.equal(ours, theirs), name


def test_weights_are_those_that_were_saved_whatever_an_optimizer_does_when_it_reads_its_states(
    make_trainer, tmp_path, monkeypatch
):
    """Megatron's hybrid one, which needs a GPU, takes a step on noise."""
    saved, resumed = make_trainer(dtype="bfloat16"), make_trainer(dtype="bfloat16")
    for one in (saved, resumed):
        one.prepare_optimizer(OPTIMIZER, total_steps=9)
    saved.save(tmp_path / "state")
    (optimizer,) = resumed.state.optimizer.chained_optimizers
    read = optimizer.load_state_dict

    def read_noisily(states):
        for weight in resumed.stages[0].parameters():
            weight.data.add_(1.0)
        read(states)

    monkeypatch.setattr(optimizer, "load_state_dict", read_noisily)
    resumed.load(tmp_path / "state")
    for (name, ours), (_, theirs) in zip(resumed.exporter, saved.exporter, strict=True):
        assert torch.equal(ours, theirs), name


def test_a_run_whose_first_step_was_left_out_resumes_as_if_it_had_only_begun(
    make_trainer, make_samples, tmp_path
):
    first, second = make_samples(LENGTHS, seed=1), make_samples(LENGTHS, seed=2)
    whole, resumed = make_trainer(), make_trainer()
    for one in (whole, resumed):
        one.prepare_optimizer(OPTIMIZER, total_steps=9)
    nowhere = [dataclasses.replace(sample, advantages=[math.nan] * sample.response_length) for sample in first]
    assert whole.train_step(nowhere, policy())["skipped"] == 1.0
    whole.save(tmp_path / "state")
    resumed.load(tmp_path / "state")
    for batch in (first, second):
        assert resumed.train_step(batch, policy()) == whole.train_step(batch, policy())


def test_a_save_in_the_background_holds_what_was_there_when_it_began(make_trainer, make_samples, tmp_path):
    first, second, third = (make_samples(LENGTHS, seed=seed) for seed in range(3))
    trainer, resumed = make_trainer(), make_trainer()
    for one in (trainer, resumed):
        one.prepare_optimizer(OPTIMIZER, total_steps=9)
    trainer.train_step(first, policy())
    trainer.start_saving(tmp_path / "state")
    expected = [trainer.train_step(batch, policy()) for batch in (second, third)]
    trainer.finish_saving()
    assert not trainer.is_saving()
    assert resumed.load(tmp_path / "state")
    assert [resumed.train_step(batch, policy()) for batch in (second, third)] == expected


def in_background(trainer, folder):
    trainer.start_saving(folder)
    trainer.finish_saving()


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_finds_no_room_says_so_and_training_goes_on(
    make_trainer, make_samples, tmp_path, full_disk, background
):
    trainer = make_trainer()
    trainer.prepare_optimizer(OPTIMIZER, total_steps=9)
    trainer.train_step(make_samples(LENGTHS), policy())
    save = in_background if background else Trainer.save
    with full_disk(100_000), pytest.raises(RlcoreError, match=r"rank 0 could not write.*\n.*make room"):
        save(trainer, tmp_path / "state")
    trainer.train_step(make_samples(LENGTHS), policy())
    trainer.save(tmp_path / "room")


def test_bfloat16_trains_like_float32(make_trainer, make_samples):
    samples = make_samples(LENGTHS)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(dtype=dtype)
        trainer.prepare_optimizer(OPTIMIZER, total_steps=3)
        losses[dtype] = [trainer.train_step(samples, SftObjective())["loss"] for _ in range(3)]
        assert trainer.stages[0].output_layer.weight.main_grad.dtype == torch.float32
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_the_reference_stays_where_the_policy_started(make_trainer, make_samples):
    samples = make_samples(LENGTHS)
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(lr=1e-2), total_steps=3)
    before = log_probs_of(trainer, samples)
    trainer.train_step(samples, SftObjective())
    moved = log_probs_of(trainer, samples)
    reference = in_order(trainer.reference_log_probs(samples))
    for first, now, frozen in zip(before, moved, reference, strict=True):
        assert torch.equal(frozen, first)
        assert (now - first).abs().max() > 1e-3
    for now, again in zip(moved, log_probs_of(trainer, samples), strict=True):
        assert torch.equal(again, now)
    trained = [
        dataclasses.replace(s, old_log_probs=None, ref_log_probs=r)
        for s, r in zip(samples, reference, strict=True)
    ]
    assert trainer.train_step(trained, policy(kl=KL(loss_coefficient=0.1)))["kl"] > 0


def poisoned(samples):
    bad = dataclasses.replace(samples[3], advantages=[float("nan")] * samples[3].response_length)
    return [*samples[:3], bad, *samples[4:]]


def test_a_loss_that_is_not_finite_can_end_the_run_before_the_weights_change(make_trainer, make_samples):
    trainer = make_trainer(bad_steps=BadSteps(on_nonfinite="fail"))
    trainer.prepare_optimizer(OPTIMIZER, total_steps=3)
    samples = make_samples(LENGTHS)
    before = [weight.clone() for _, weight in trainer.exporter]
    with pytest.raises(RlcoreError, match=r"optimizer step 1: loss nan.*from sample 3\n"):
        trainer.train_step(poisoned(samples), policy())
    for (name, weight), old in zip(trainer.exporter, before, strict=True):
        assert torch.equal(weight, old), name
    assert math.isfinite(trainer.train_step(samples, policy())["loss"])


def test_steps_that_are_not_finite_are_left_out_until_there_are_too_many_in_a_row(make_trainer, make_samples):
    trainer = make_trainer(bad_steps=BadSteps(max_in_a_row=1))
    trainer.prepare_optimizer(OPTIMIZER, total_steps=9)
    samples = make_samples(LENGTHS)
    batches = (poisoned(samples), samples, poisoned(samples))
    assert [trainer.train_step(batch, policy())["skipped"] for batch in batches] == [1.0, 0.0, 1.0]
    assert trainer.step == 1
    with pytest.raises(RlcoreError, match="from sample 3"):
        trainer.train_step(poisoned(samples), policy())


def test_importance_weights_scale_the_loss(make_trainer, make_samples):
    trainer = make_trainer()
    trainer.prepare_optimizer(OPTIMIZER, total_steps=3)
    samples = make_samples(LENGTHS, old_log_probs=None)
    engine = [log_probs - math.log(3) for log_probs in log_probs_of(trainer, samples)]
    samples = [dataclasses.replace(s, rollout_log_probs=e) for s, e in zip(samples, engine, strict=True)]
    metrics = trainer.train_step(samples, policy(importance_sampling={"enabled": True, "high": 2.0}))
    assert metrics["importance/ratio"] == pytest.approx(3.0, rel=1e-4)
    assert metrics["importance/clip_fraction"] == pytest.approx(1.0)
    assert metrics["logprob_gap/max"] == pytest.approx(math.log(3), rel=1e-4)


def test_training_may_start_from_the_weights_of_a_saved_state(make_trainer, make_samples, tmp_path):
    samples = make_samples(LENGTHS)
    trained = make_trainer()
    trained.prepare_optimizer(Optimizer(lr=1e-2), total_steps=3)
    trained.train_step(samples, SftObjective())
    trained.save(tmp_path / "state")
    started = make_trainer(load=tmp_path / "state")
    for (name, ours), (_, theirs) in zip(started.exporter, trained.exporter, strict=True):
        assert torch.equal(ours, theirs), name


def test_weights_and_states_of_another_model_are_refused(make_trainer, make_samples, tmp_path):
    trained = make_trainer()
    trained.prepare_optimizer(OPTIMIZER, total_steps=3)
    trained.train_step(make_samples(LENGTHS), SftObjective())
    trained.save(tmp_path / "state")
    other = make_trainer()
    projection = other.stages[0].decoder.layers[0].mlp.linear_fc2
    projection.weight = torch.nn.Parameter(projection.weight.detach()[:, :32].clone())
    with pytest.raises(RlcoreError, match="does not fit the model"):
        load_weights(other.stages, tmp_path / "state")
    other.prepare_optimizer(OPTIMIZER, total_steps=3)
    with pytest.raises(RlcoreError, match="does not fit the model"):
        other.load(tmp_path / "state")


@pytest.mark.parametrize("saved_as", ["torch_dist", "Hugging Face"])
def test_the_reference_may_be_another_checkpoint(make_trainer, make_samples, tmp_path, saved_as):
    samples = make_samples(LENGTHS)
    other = make_trainer()
    other.prepare_optimizer(Optimizer(lr=1e-2), total_steps=3)
    other.train_step(samples, SftObjective())
    (other.save if saved_as == "torch_dist" else other.save_hf)(tmp_path / "other")
    trainer = make_trainer(reference=tmp_path / "other")
    before = log_probs_of(trainer, samples)
    reference = in_order(trainer.reference_log_probs(samples))
    for ours, theirs in zip(reference, log_probs_of(other, samples), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(log_probs_of(trainer, samples), before, strict=True):
        assert torch.equal(ours, theirs)


def test_training_that_starts_elsewhere_refers_to_where_it_started(make_trainer, make_samples, tmp_path):
    samples = make_samples(LENGTHS)
    trained = make_trainer()
    trained.prepare_optimizer(Optimizer(lr=1e-2), total_steps=3)
    trained.train_step(samples, SftObjective())
    trained.save(tmp_path / "state")
    started = make_trainer(load=tmp_path / "state")
    for ours, theirs in zip(
        in_order(started.reference_log_probs(samples)), log_probs_of(trained, samples), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_trained_model_opens_in_transformers(make_trainer, make_samples, tmp_path):
    samples = make_samples(LENGTHS)
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(lr=1e-2), total_steps=3)
    trainer.train_step(samples, SftObjective())
    trainer.save_hf(tmp_path / "trained")
    _, expected = reference_log_probs(tmp_path / "trained", samples)
    for ours, theirs in zip(log_probs_of(trainer, samples), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_few_logits_at_a_time_change_nothing(make_trainer, make_samples):
    samples = make_samples(LENGTHS)
    metrics = []
    for chunk in (None, 3):
        trainer = make_trainer(log_probs_chunk=chunk)
        trainer.prepare_optimizer(OPTIMIZER, total_steps=3)
        metrics.append(trainer.train_step(samples, policy(entropy_coefficient=0.1)))
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)


def test_megatron_fields_reach_its_optimizer_but_not_those_of_the_recipe(make_trainer):
    trainer = make_trainer(megatron={"adam_beta1": 0.5, "lr": 1.0, "decoupled_weight_decay": False})
    with pytest.raises(RlcoreError) as error:
        trainer.prepare_optimizer(Optimizer(precision_aware=True), total_steps=3)
    places = [problem.place for problem in error.value.problems]
    assert places == ["optimizer.precision_aware", "megatron.adam_beta1", "megatron.lr"]


def test_offloaded_states_are_those_of_a_machine_without_a_gpu(make_trainer, make_samples):
    losses = []
    for settings in (Optimizer(lr=1e-2), Optimizer(lr=1e-2, cpu_offload=True, overlap_offload=True)):
        trainer = make_trainer()
        trainer.prepare_optimizer(settings, total_steps=3)
        losses.append([trainer.train_step(make_samples([(3, 5)]), SftObjective())["loss"] for _ in range(3)])
    assert losses[0] == losses[1]


def test_sending_gradients_early_changes_nothing(make_trainer, make_samples):
    samples = make_samples(LENGTHS)
    found = []
    for megatron in ({}, {"overlap_grad_reduce": True}):
        trainer = make_trainer(megatron=megatron, max_tokens_per_gpu=33)
        trainer.prepare_optimizer(OPTIMIZER, total_steps=3)
        found.append([trainer.train_step(samples, policy()) for _ in range(2)])
    assert found[0] == found[1]
