"""A trainer whose memory was away in between trains as one that kept it, bit for bit. Ranks take about 15 s."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rlcore_glm4.plugin import glm4_spec

from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.config.schema import Algorithm, Model, Optimizer, Recipe
from rlcore.errors import RlcoreError
from rlcore.layout.memory import held as planned
from rlcore.layout.model import Placed
from rlcore.layout.plan import layout_of
from rlcore.models.hf_config import read_hf_config
from rlcore.trainer import offload
from rlcore.trainer.objectives import PolicyObjective
from rlcore.trainer.offload import OffloadedTrainer

LENGTHS = [(5, 9), (3, 17), (8, 4)]
OBJECTIVE = PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm())


@pytest.fixture(params=["float32", "bfloat16"])
def make_ready(request, make_trainer):
    def make(**keywords):
        trainer = make_trainer(request.param, **keywords)
        trainer.prepare_optimizer(Optimizer(lr=1e-2, warmup_steps=0), total_steps=10)
        return trainer

    return make


@pytest.fixture
def parked(make_ready, monkeypatch):
    """A trainer with small blocks of host memory, so that storages lie across several."""
    monkeypatch.setattr(offload, "BLOCK_BYTES", 1 << 14)
    return OffloadedTrainer(make_ready())


def storages(trainer):
    """All that a trainer holds between two calls, by what holds it."""
    (stage,), state = trainer.stages, trainer.state
    (optimizer,) = state.optimizer.chained_optimizers
    (buffer,) = state.stages[0].buffers
    moments = [one for states in optimizer.optimizer.state.values() for one in states.values()]
    masters = [main for group in optimizer.param_groups for main in group["params"]]
    tensors = {
        "parameters": list(stage.parameters()),
        "their buffer": [buffer.param_data],
        "gradients": [buffer.grad_data, *(parameter.main_grad for parameter in stage.parameters())],
        "masters": masters,
        "moments": [one for one in moments if isinstance(one, torch.Tensor)],
    }
    return {name: [one.untyped_storage() for one in held] for name, held in tensors.items()}


def held(trainer):
    return {name: sum(one.size() for one in found) for name, found in storages(trainer).items()}


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.exporter}


def test_nothing_is_held_while_all_is_released(parked, make_samples):
    parked.train_step(make_samples(LENGTHS), OBJECTIVE)
    before = held(parked)
    assert all(before.values())
    whole = {one._cdata: one.size() for found in storages(parked).values() for one in found}
    assert parked.release() == sum(whole.values())
    assert set(held(parked).values()) == {0}
    parked.occupy()
    assert held(parked) == before


def test_states_leave_while_weights_are_sent(parked, make_samples):
    parked.train_step(make_samples(LENGTHS), OBJECTIVE)
    expected = weights_of(parked)
    states, all_of_it = parked.release("states", "gradients"), None
    assert held(parked)["gradients"] == held(parked)["moments"] == 0
    sent = parked.first_weights(1 << 30)
    assert held(parked)["moments"] == 0
    assert all(sent[name].equal(tensor) for name, tensor in expected.items())
    all_of_it = parked.release()
    assert all_of_it > states > 0


def test_a_plan_says_how_much_it_is(parked, checkpoint, make_samples):
    parked.train_step(make_samples(LENGTHS), OBJECTIVE)
    dtype = str(next(parked.stages[0].parameters()).dtype).removeprefix("torch.")
    recipe = Recipe(model=Model(checkpoint=str(checkpoint), dtype=dtype))
    spec = glm4_spec(read_hf_config(checkpoint))
    estimate = planned(recipe, Placed(spec, layout_of(recipe, spec.stage_starts)))
    assert parked.release() == pytest.approx(estimate.total, rel=0.01)


@pytest.mark.parametrize("order", [["weights", "states", "gradients"], ["gradients", "states", "weights"]])
def test_steps_are_those_of_a_trainer_that_kept_its_memory(parked, make_ready, make_samples, order):
    usual = make_ready()
    for seed in range(3):
        samples = make_samples(LENGTHS, seed=seed)
        for kind in order:
            parked.release(kind)
        ours, expected = parked.log_probs(samples), usual.log_probs(samples)
        assert all(ours[index].equal(expected[index]) for index in expected)
        assert parked.train_step(samples, OBJECTIVE) == usual.train_step(samples, OBJECTIVE)
    parked.release()
    ours, expected = weights_of_released(parked), weights_of(usual)
    assert all(ours[name].equal(expected[name]) for name in expected)


def weights_of_released(trainer):
    trainer.occupy("weights")
    return weights_of(trainer)


def test_a_reference_policy_scores_while_states_are_away(parked, make_samples):
    samples = make_samples(LENGTHS)
    first = parked.log_probs(samples)
    parked.train_step(samples, OBJECTIVE)
    parked.release()
    again = parked.reference_log_probs(samples)
    assert all(again[index].equal(first[index]) for index in first)
    assert held(parked)["moments"] == 0


def test_memory_that_others_still_have_is_missed_in_a_plain_sentence(parked, monkeypatch):
    def refuse(kind):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nDetails")

    parked.release()
    monkeypatch.setattr(parked, "_bring_back", refuse)
    with pytest.raises(RlcoreError, match=r"no room for the trainer's weights: CUDA out .* 2 GiB") as caught:
        parked.occupy()
    assert caught.value.problems[0].remedy == "a lower mem_fraction_static"
    assert "Details" not in str(caught.value)


def test_host_memory_is_used_again(parked, make_samples):
    kept = []
    for seed in range(3):
        parked.train_step(make_samples(LENGTHS, seed=seed), OBJECTIVE)
        parked.release()
        kept.append([block.data_ptr() for host in parked._hosts.values() for block in host._blocks])
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_released_trainer_saves_and_loads_what_it_had(
    parked, make_ready, make_samples, tmp_path, in_background
):
    usual, samples = make_ready(), make_samples(LENGTHS)
    for one in (parked, usual):
        one.train_step(samples, OBJECTIVE)
    usual.save(tmp_path / "usual")
    parked.release()
    if in_background:
        parked.start_saving(tmp_path / "parked")
        parked.release()
        parked.finish_saving()
    else:
        parked.save(tmp_path / "parked")
    assert_same_files(tmp_path / "parked", tmp_path / "usual")
    resumed = OffloadedTrainer(make_ready())
    resumed.release()
    resumed.load(tmp_path / "parked")
    resumed.release()
    assert resumed.train_step(samples, OBJECTIVE) == usual.train_step(samples, OBJECTIVE)


def assert_same_files(ours, expected):
    """All but the table of contents, which names the folder."""
    names = {file.name for file in expected.iterdir()} - {".metadata"}
    _, different, failed = filecmp.cmpfiles(ours, expected, names, shallow=False)
    assert (different, failed) == ([], [])


def test_a_model_is_written_without_optimizer_states_in_memory(parked, checkpoint, tmp_path):
    parked.release()
    parked.save_hf(tmp_path / "hf")
    assert (tmp_path / "hf/config.json").is_file()
    assert held(parked)["gradients"] == 0


def test_so_do_ranks_in_every_layout_of_their_optimizer_with_nothing_held_in_between():
    program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("offload_on_ranks.py"))]
    found = json.loads(subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True).stdout)
    assert list(found.values()) == [[]] * 6, found
