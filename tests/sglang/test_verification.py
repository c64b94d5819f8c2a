"""A server that answers "success" and has other weights is caught, and one that refuses lets the trainer go."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from rlcore_glm4.bridge import glm4_bridge
from rlcore_glm4.spec import glm4_spec
from rlcore_glm45.bridge import glm45_bridge
from rlcore_glm45.spec import glm45_spec
from safetensors.torch import load_file

from rlcore.cluster.group import InProcess
from rlcore.config.schema import Model, Parallel
from rlcore.controller.policy import Policy
from rlcore.controller.sync import send_all, sync_weights
from rlcore.controller.verification import Verifier
from rlcore.errors import RlcoreError
from rlcore.models.hf_config import read_hf_config
from rlcore.rollout.sglang.broadcast_updates import BroadcastTransport
from rlcore.rollout.sglang.engine import open_engine
from rlcore.rollout.sglang.updates import TensorTransport, served_updates
from rlcore.testing.engine_contract import TOLERANCE
from rlcore.trainer.setup import process_groups
from rlcore.trainer.trainer import Trainer

FAMILIES = {"glm4": (glm4_spec, glm4_bridge), "glm4_moe": (glm45_spec, glm45_bridge)}


@pytest.fixture(scope="module")
def policy(subject):
    """The subject's other weights, in a trainer."""
    folder = subject.checkpoint.parent / "new"
    config = read_hf_config(folder)
    make_spec, make_bridge = FAMILIES[config["model_type"]]
    spec = make_spec(config)
    model = Model(checkpoint=str(folder), dtype="float32")
    with process_groups(Parallel(), seed=0):
        yield Policy(InProcess(lambda rank: Trainer(spec, make_bridge(spec), folder, model=model)))


@pytest.fixture
def verifier(policy):
    return Verifier(policy, "always", 1.0, "float32")


@asynccontextmanager
async def opened(server, transport):
    engine = await open_engine([server.url], served_updates(transport), vocab_size=300)
    await engine.resume()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize("transport", [TensorTransport, lambda: BroadcastTransport("gloo")])
def test_servers_agree_with_the_trainer_after_each_sync(server, subject, policy, verifier, transport):
    async def sync_twice():
        async with opened(server, transport()) as engine:
            for version in (1, 2):
                report = await sync_weights(engine, policy, version, bucket_mib=1)
                found = await verifier.check(engine, version)
                assert report.nbytes == sum(tensor.nbytes for tensor in subject.new_tensors.values())
                assert found["sync/probe_gap"] <= TOLERANCE
                assert 0 < report.load_seconds < report.seconds

    asyncio.run(sync_twice())


def in_memory_names(subject):
    """New weights as transformers holds them: experts stacked. Where there are none, some just do not come."""
    stacked = {name: tensor for name, tensor in subject.new_model.state_dict().items() if ".experts." in name}
    kept = {name: tensor for name, tensor in subject.new_tensors.items() if ".experts." not in name}
    return kept | stacked if stacked else {name: kept[name] for name in kept if "down_proj" not in name}


def test_a_server_that_was_given_names_that_it_does_not_know_is_caught(server, subject, policy, verifier):
    own = load_file(subject.checkpoint / "model.safetensors")

    async def mislead():
        async with opened(server, TensorTransport()) as engine:
            for version, tensors in ((1, own), (2, in_memory_names(subject))):
                async with engine.weight_update(version) as update:
                    await update.send(tensors)
            with pytest.raises(RlcoreError, match="answers with other weights than the trainer's"):
                await verifier.check(engine, 2)
            await sync_weights(engine, policy, 3, bucket_mib=1)
            return await verifier.check(engine, 3)

    assert asyncio.run(mislead())["sync/probe_gap"] <= TOLERANCE


def test_a_server_that_says_that_it_has_an_older_version_is_caught(server, policy, verifier):
    async def set_back():
        async with opened(server, TensorTransport()) as engine:
            await sync_weights(engine, policy, 2, bucket_mib=1)
            await engine.workers[0].set_version(1)
            with pytest.raises(RlcoreError, match="has weights 1, not 2"):
                await verifier.check(engine, 2)

    asyncio.run(set_back())


async def update_behind_its_back(engine, policy):
    """An update that the server believes to have ended."""
    async with engine.weight_update(1) as update:
        await engine.workers[0].end_update()
        await send_all(policy, update, most_bytes=20_000)


def test_a_server_that_refuses_a_bundle_leaves_no_trainer_waiting_in_a_broadcast(server, policy, verifier):
    async def refuse():
        async with opened(server, BroadcastTransport("gloo")) as engine:
            with pytest.raises(RlcoreError, match="must run between begin_weight_update"):
                await update_behind_its_back(engine, policy)
            await sync_weights(engine, policy, 2, bucket_mib=1)
            return await verifier.check(engine, 2)

    async def in_time():
        return await asyncio.wait_for(refuse(), timeout=60)

    assert asyncio.run(in_time())["sync/probe_gap"] <= TOLERANCE
