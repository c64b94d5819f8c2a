"""Carries the trainer's weights to an engine, in hub names and bounded bundles."""

from rlcore.controller.policy import Policy
from rlcore.errors import fail
from rlcore.rollout.engine import Engine, LostError

MIB = 2**20
# A server that is lost on the way takes the update down with it; those that are left get it again.
ATTEMPTS = 3


async def sync_weights(engine: Engine, policy: Policy, version: int, bucket_mib: int) -> int:
    """Give the engine the policy's weights under a version number; returns the bytes sent.

    Raises RlcoreError where the engine refuses them, and where they are lost again and again.
    """
    for _ in range(ATTEMPTS):
        try:
            return await _send(engine, policy, version, bucket_mib)
        except LostError as error:
            lost = error
    raise fail(f"sync of weights {version}", str(lost), "look into logs/ of the run, then resume it")


async def _send(engine: Engine, policy: Policy, version: int, bucket_mib: int) -> int:
    sent = 0
    async with engine.weight_update(version) as update:
        for bucket in policy.weights(bucket_mib * MIB):
            await update.send(bucket)
            sent += sum(tensor.nbytes for tensor in bucket.values())
    return sent
