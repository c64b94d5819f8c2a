"""A run whose trainer leaves its memory while engines generate is the run that it would have been."""

from safetensors.torch import load_file

from rlcore.telemetry.metrics import read_metrics

ALONE = ["train.threads=1"]
SHARED = ["train.threads=1", "cluster.colocate=true"]


def assert_same(world):
    assert world.rows("shared") == world.rows("alone")
    ours, theirs = (load_file(world.folder / name / "hf/model.safetensors") for name in ("shared", "alone"))
    assert all(ours[key].equal(tensor) for key, tensor in theirs.items())


def test_evaluation_reference_checkpoints_and_resumes_are_the_same(world):
    options = ["algorithm.kl.loss_coefficient=0.1", "train.updates_per_rollout=2", "checkpoints.every=2"]
    options += ["checkpoints.asynchronous=true", "checkpoints.hf_every=2"]
    for name, where in {"alone": ALONE, "shared": SHARED}.items():
        assert world.train(name, *options, *where) == 0
    assert_same(world)
    row = read_metrics(world.folder / "shared/metrics.jsonl")[-1]
    assert row["time/handover"] > 0
    assert row["memory/offloaded_gb"] > 0
    for name, where in {"alone": ALONE, "shared": SHARED}.items():
        assert world.train(name, *options, *where, "train.steps=4", flags=["--resume"]) == 0
    assert_same(world)


def test_a_run_that_ends_while_engines_have_the_memory_saves_its_last_step(world):
    """The second step's rollout fails."""
    for name, where in {"alone": ALONE, "shared": SHARED}.items():
        assert world.train_only(name, "rewards=[raises]", *where) == 1
        assert (world.folder / name / "checkpoints/step-000001/state.json").is_file()
        assert world.train_only(name, *where, flags=["--resume", "--accept-plugin-changes"]) == 0
    assert_same(world)
