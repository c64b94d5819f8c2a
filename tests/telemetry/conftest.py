"""A small run as the training loop writes it."""

import json

import pytest

from rlcore.data.sample import Sample, Status
from rlcore.telemetry.rollouts import TRAINING, evaluation_kind, write_samples
from rlcore.telemetry.run_folder import RunFolder

HOSTILE = "</pre><script>alert('boo')</script><img src=x onerror=alert(1)>"


def _sample(number, right):
    return Sample(
        prompt=[{"role": "user", "content": f"What is {number} + 1? {HOSTILE}"}],
        label=str(number + 1),
        response=f"{number + right} see https://example.org/ {HOSTILE}",
        tokens=[1, 2, 3],
        status=Status.COMPLETED,
        reward=float(right),
    )


def _evaluate(run, step, rights):
    run.metrics.append(step, {"eval/sums/pass@1": sum(rights) / len(rights)})
    samples = [_sample(number, right) for number, right in enumerate(rights)]
    write_samples(run.paths.rollouts, evaluation_kind("sums"), step, samples)


@pytest.fixture
def finished_run(tmp_path):
    """Two steps of training between two evaluations: 25 % right before, 100 % after."""
    with RunFolder.create(tmp_path / "run", resume=False) as run:
        run.write_config(f"name: demo  # {HOSTILE}\ncluster:\n  env:\n    HF_TOKEN: hf_very_secret\n")
        entry = {"kind": "rewards", "name": "sums", "distribution": "d", "version": "1", "sha256": "ab" * 32}
        run.paths.plugins.write_text(json.dumps([entry]))
        _evaluate(run, 0, [0, 0, 0, 1])
        for step in (1, 2):
            row = {"reward/mean": 0.5, "reward/sums/mean": 0.5, "reward/format/mean": 0.9, "kl": float("nan")}
            row |= {"tokens/generated": 100, "logprob_gap/max": step * 1e-6, "memory/peak_rss_gb": 1.5}
            row |= {
                "rollout/groups_dropped/zero_std": 2,
                "time/rollout": 3.0,
                "time/other": 1.0,
                "time/step": 4.0,
            }
            run.metrics.append(step, row)
        _evaluate(run, 2, [1, 1, 1, 1])
        write_samples(run.paths.rollouts, TRAINING, 2, [_sample(9, 1)])
        run.events.record("stall", phase="reward", waiting_for=HOSTILE)
    return run.path
