import pytest
import torch

from rlcore.config.schema import Optimizer
from rlcore.trainer.moments import Moments, address
from rlcore.trainer.objectives import SftObjective


@pytest.fixture
def moments(make_trainer, make_samples):
    """Those of a trainer that has taken a step."""
    trainer = make_trainer()
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=1)
    trainer.train_step(make_samples([(3, 9)]), SftObjective())
    (stage,), (optimizer,) = trainer.stages, trainer.state.optimizer.chained_optimizers
    return Moments(optimizer, {"model": stage.sharded_state_dict()})


def test_only_what_is_to_be_written_is_read(moments):
    wanted, other = moments.sharded[0], moments.sharded[1]
    moments.fill({address(wanted["exp_avg"].data)})
    assert wanted["exp_avg"].data.any()
    assert not torch.cat([data.data.flatten() for data in (wanted["param"], *other.values())]).any()


def test_states_are_named_and_shaped_like_their_parameters(moments):
    for states in moments.sharded.values():
        names = {kind: state.key.removeprefix(f"optimizer.state.{kind}.") for kind, state in states.items()}
        assert len(set(names.values())) == 1
        assert len({tuple(state.data.shape) for state in states.values()}) == 1
