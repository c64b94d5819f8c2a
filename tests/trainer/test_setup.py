import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from rlcore.config.schema import Parallel
from rlcore.trainer.setup import initialize, process_groups, seed_everything


@pytest.fixture(autouse=True)
def groups_for_the_modules_after():
    yield
    initialize(Parallel(), seed=0)


def test_one_process_forms_every_group_without_a_port():
    with process_groups(Parallel(), seed=1):
        assert dist.get_world_size() == 1
        assert parallel_state.get_tensor_model_parallel_world_size() == 1
        assert parallel_state.get_pipeline_model_parallel_world_size() == 1
    assert not dist.is_initialized()


def test_a_second_layout_replaces_the_first():
    initialize(Parallel(), seed=0)
    initialize(Parallel(), seed=0)
    assert parallel_state.model_parallel_is_initialized()


def test_everything_random_follows_from_the_seed():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert draw() != first
