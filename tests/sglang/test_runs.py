"""A recipe trains with SGLang servers as it does with the local engine."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rlcore_glm4.demo import DEMO
from rlcore_glm45.demo import DEMO as EXPERTS

from rlcore.cli.main import main
from rlcore.telemetry.events import read_events
from rlcore.telemetry.memory import descendants
from rlcore.telemetry.metrics import read_metrics
from rlcore.telemetry.rollouts import TRAINING, read_samples, sample_files

RECIPE = """\
base: {family}/tiny
name: served
model: {{checkpoint: {world}/model}}
data: {{path: {world}/train.jsonl}}
sft: {{data: {{path: {world}/warm_start.jsonl}}}}
rollout:
  engine: sglang
  num_gpus: 2  # servers, where the cluster has no GPU
  prompts_per_step: 8
  samples_per_prompt: 4
  sglang: {{python: {python}}}
train: {{steps: 2}}
eval: {{every: null, datasets: []}}
checkpoints: {{hf: false}}
"""


@pytest.fixture(scope="session")
def write_recipe(sglang_python, tmp_path_factory):
    def write(family, demo):
        world = tmp_path_factory.mktemp(family)
        demo.write(world)
        file = world / "served.yaml"
        file.write_text(RECIPE.format(family=family, world=world, python=sglang_python))
        return file

    return write


@pytest.fixture(scope="session")
def recipe(write_recipe):
    return write_recipe("glm4", DEMO)


def train(recipe, run, *flags):
    return main(["train", str(recipe), "--run-dir", str(run), "--quiet", *flags])


def test_two_servers_behind_a_router_agree_with_the_trainer_on_every_step(recipe, tmp_path):
    run = tmp_path / "run"
    assert train(recipe, run) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["logprob_gap/max"] for row in rows) < 1e-5
    logs = [(run / "logs" / f"sglang-{i}.log").read_text() for i in (0, 1)]
    assert all("/generate" in log for log in logs)
    assert (run / "logs/router.log").is_file()
    assert not (tmp_path / ".run.starting").exists()


def test_an_argument_that_this_release_has_not_stops_before_anything_starts(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "--set", "rollout.sglang.args.page_sise=64") == 1
    assert "SGLang 0.5.23 has no argument 'page_sise'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_start_is_explained_with_its_last_words(recipe, tmp_path, capsys):
    settings = ("rollout.num_gpus=1", "rollout.sglang.args.context_length=100000")
    assert train(recipe, tmp_path / "run", *(word for one in settings for word in ("--set", one))) == 1
    message = capsys.readouterr().err
    assert "ended with exit status" in message
    assert "context" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", ["one_step", "async"])
def test_a_run_that_loses_a_server_goes_on_and_trains_every_prompt_once_in_time(recipe, tmp_path, mode):
    run = tmp_path / "run"
    sets = [f"rollout.mode={mode}", "train.steps=4", "rollout.max_response_tokens=48"]
    flags = [word for one in sets for word in ("--set", one)]
    command = [sys.executable, "-m", "rlcore.cli.main", "train", str(recipe), "--run-dir", str(run), "--quiet"]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.kill(servers_of(process.pid)[0], signal.SIGKILL)
    _, message = process.communicate()
    assert process.returncode == 0, message
    warnings = [event["text"] for event in read_events(run / "events.jsonl") if event["kind"] == "warning"]
    assert "SGLang server lost" in warnings[0]
    assert_every_prompt_was_trained_once(run, steps=4, max_staleness=1)
    assert_log_probs_agree(run)


def test_experts_whose_trainer_and_server_share_memory_agree_on_every_step(write_recipe, tmp_path):
    run = tmp_path / "run"
    sets = ["cluster.colocate=true", "rollout.num_gpus=1", "sync.verify=always", "train.steps=3"]
    assert train(write_recipe("glm45", EXPERTS), run, *(f"--set={one}" for one in sets)) == 0
    assert_every_prompt_was_trained_once(run, steps=3, max_staleness=0)
    assert_log_probs_agree(run)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["memory/offloaded_gb"] > 0 and row["sync/probe_gap"] < 1e-5 for row in rows] == [True] * 3
    assert "/update_weights_from_tensor" in (run / "logs/sglang-0.log").read_text()


def assert_every_prompt_was_trained_once(run, steps, max_staleness):
    files = sample_files(run / "rollouts", TRAINING)
    assert list(files) == list(range(1, steps + 1))
    for step, path in files.items():
        samples = read_samples(path)
        assert Counter(sample.group for sample in samples) == dict.fromkeys(range(8 * step - 8, 8 * step), 4)
        assert all(len(sample.versions) == len(sample.tokens) for sample in samples)
        versions = {version for sample in samples for version in sample.versions}
        assert versions <= set(range(step - 1 - max_staleness, step))


def assert_log_probs_agree(run):
    gaps = [row["logprob_gap/max"] for row in read_metrics(run / "metrics.jsonl") if "logprob_gap/max" in row]
    assert gaps
    assert max(gaps) < 1e-5


def servers_of(pid):
    """Processes of the SGLang servers that a run has launched."""
    named = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in descendants(pid)}
    return [child for child, words in named.items() if b"sglang.launch_server" in words]
