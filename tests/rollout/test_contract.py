"""The local engine keeps what engines promise, with a model as it is and with its attention fused."""

from contextlib import asynccontextmanager
from functools import partial

import pytest

from rlcore.rollout.local import LocalEngine
from rlcore.rollout.local_fused import fuse_attention
from rlcore.testing.engine_contract import EngineContract


@pytest.fixture(params=["plain", "fused"])
def opens(subject, request):
    fuse = partial(fuse_attention, neighbours=subject.model.config.model_type == "glm4")
    options = {"serve": fuse} if request.param == "fused" else {}

    @asynccontextmanager
    async def open_engine():
        engine = LocalEngine(subject.checkpoint, concurrency=4, **options)
        yield engine
        await engine.close()

    return open_engine


class TestLocalEngine(EngineContract):
    pass
