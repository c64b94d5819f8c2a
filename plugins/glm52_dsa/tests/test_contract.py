"""The local engine keeps its promises with sparse attention, in contexts of five times what a query may see."""

from contextlib import asynccontextmanager

import pytest
from rlcore_glm52_dsa.spec import dsa_spec

from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.local import LocalEngine
from rlcore.testing.engine_contract import EngineContract


@pytest.fixture
def opens(subject):
    spec = dsa_spec(read_hf_config(subject.checkpoint))

    @asynccontextmanager
    async def open_engine():
        engine = LocalEngine(subject.checkpoint, concurrency=4, serve=spec.serve_transformers)
        yield engine
        await engine.close()

    return open_engine


class TestSparseAttention(EngineContract):
    pass
