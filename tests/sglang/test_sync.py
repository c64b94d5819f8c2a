"""Weights come to a real server, by every way, as they are; one that has others is found out."""

import asyncio
from contextlib import asynccontextmanager

import pytest
import torch
from safetensors.torch import load_file

from rlcore.rollout.sglang.broadcast_updates import BroadcastTransport
from rlcore.rollout.sglang.disk_update import DiskTransport
from rlcore.rollout.sglang.engine import open_engine
from rlcore.rollout.sglang.updates import TensorTransport, served_updates
from rlcore.sync.buckets import buckets
from rlcore.testing.engine_contract import TOLERANCE, answers, log_probs, mixed_requests

# Small enough for many bundles.
BUNDLE = 12_000
WAYS = {
    "tensor": lambda folder, checkpoint: TensorTransport(),
    "broadcast": lambda folder, checkpoint: BroadcastTransport("gloo"),
    "disk": lambda folder, checkpoint: DiskTransport(folder, checkpoint),
    "delta": lambda folder, checkpoint: DiskTransport(folder, checkpoint, delta=True),
}


@asynccontextmanager
async def opened(server, transport):
    engine = await open_engine([server.url], served_updates(transport), vocab_size=300)
    await engine.resume()
    try:
        yield engine
    finally:
        await engine.close()


async def update(engine, version, tensors, most_bytes=BUNDLE):
    async with engine.weight_update(version) as open_update:
        for bucket in buckets(sorted(tensors.items()), most_bytes):
            await open_update.send(bucket)


async def gap(engine, model):
    """Largest distance of log-probs from those of transformers' model."""
    asked = mixed_requests()
    found = await answers(engine, asked)
    return max(
        (torch.tensor(got.log_probs) - torch.tensor(log_probs(model, one, got.tokens))).abs().max().item()
        for one, got in zip(asked, found, strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_server_computes_with_the_weights_that_came_by(way, server, subject, tmp_path):
    own = load_file(subject.checkpoint / "model.safetensors")

    async def there_and_back():
        async with opened(server, WAYS[way](tmp_path / "weights", subject.checkpoint)) as engine:
            gaps = []
            for version, tensors, model in [
                (1, own, subject.model),
                (2, subject.new_tensors, subject.new_model),
                (3, own, subject.model),
            ]:
                await update(engine, version, tensors)
                gaps.append(await gap(engine, model))
            return gaps, await gap(engine, subject.new_model)

    gaps, other = asyncio.run(there_and_back())
    assert max(gaps) <= TOLERANCE < other
