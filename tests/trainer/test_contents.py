"""Damaged torch_dist checkpoints, as weights to start from and as states to resume from."""

import pytest

from rlcore.config.schema import Optimizer
from rlcore.errors import RlcoreError


def truncate(file):
    file.write_bytes(file.read_bytes()[:100])


def remove(file):
    file.unlink()


def overwrite(file):
    file.write_bytes(bytes(file.stat().st_size))


@pytest.fixture
def saved(make_trainer, tmp_path):
    """A trainer and the folder that it saved."""
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(), total_steps=3)
    trainer.save(tmp_path / "state")
    return trainer, tmp_path / "state"


@pytest.mark.parametrize(
    ("name", "harm", "found"),
    [
        ("__0_0.distcp", remove, "is damaged: __0_0.distcp is missing"),
        ("__0_0.distcp", truncate, r"is damaged: __0_0.distcp has 100 bytes instead of at least 1,\d+,\d+"),
        ("__0_0.distcp", overwrite, "or is damaged: Weights only load failed"),
        (".metadata", remove, "is damaged: .metadata is missing"),
        (".metadata", truncate, "is damaged: .metadata cannot be read"),
        ("common.pt", remove, "is damaged: common.pt is missing"),
        ("common.pt", truncate, "is damaged: common.pt cannot be read"),
        ("metadata.json", truncate, "is damaged: metadata.json cannot be read"),
    ],
)
def test_what_is_damaged_is_named_before_anything_is_loaded(saved, make_trainer, name, harm, found):
    trainer, folder = saved
    harm(folder / name)
    with pytest.raises(RlcoreError, match=found) as to_resume:
        trainer.load(folder)
    with pytest.raises(RlcoreError, match=found) as to_start:
        make_trainer(load=folder)
    assert str(to_start.value) == str(to_resume.value)
    assert str(to_start.value).startswith(str(folder))
