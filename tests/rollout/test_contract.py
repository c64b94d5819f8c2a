"""The local engine keeps what engines promise."""

from contextlib import asynccontextmanager

import pytest

from rlcore.rollout.local import LocalEngine
from rlcore.testing.engine_contract import EngineContract


@pytest.fixture
def opens(subject):
    @asynccontextmanager
    async def open_engine():
        engine = LocalEngine(subject.checkpoint, concurrency=4)
        yield engine
        await engine.close()

    return open_engine


class TestLocalEngine(EngineContract):
    pass
