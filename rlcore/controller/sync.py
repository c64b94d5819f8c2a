"""Carries the trainer's weights to an engine, in hub names and bounded bundles."""

from rlcore.controller.policy import Policy
from rlcore.rollout.engine import Engine

MIB = 2**20


async def sync_weights(engine: Engine, policy: Policy, version: int, bucket_mib: int) -> int:
    """Give the engine the policy's weights under a version number; returns the bytes sent."""
    sent = 0
    async with engine.weight_update(version) as update:
        for bucket in policy.weights(bucket_mib * MIB):
            await update.send(bucket)
            sent += sum(tensor.nbytes for tensor in bucket.values())
    return sent
