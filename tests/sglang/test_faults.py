"""What real servers do to a run when they are killed or stopped, and what becomes of requests and versions."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest
from safetensors.torch import load_file

from rlcore.config.generation import Sampling
from rlcore.data.sample import Sample, Status
from rlcore.rollout.engine import LostError
from rlcore.rollout.responses import Responder
from rlcore.rollout.sglang import fleet
from rlcore.rollout.sglang.disk_update import disk_updates
from rlcore.rollout.sglang.engine import open_engine

pytestmark = pytest.mark.parametrize("subject", ["glm4"], indirect=True, scope="session")

SAMPLING = Sampling(max_response_tokens=100)
LOST_AFTER = 10.0


class Numbers:
    def decode(self, tokens):
        return " ".join(map(str, tokens))


@pytest.fixture(scope="module")
def servers(launch, subject):
    running = launch(subject.checkpoint, count=2)
    yield running
    for server in running:
        server.stop()


@pytest.fixture
def opens(servers, subject, tmp_path, monkeypatch):
    """An engine on both servers with weights of version 1, and how to send it newer ones."""
    monkeypatch.setattr(fleet, "LOOK_SECONDS", 0.5)

    @asynccontextmanager
    async def attach():
        updates = disk_updates(tmp_path / "weights", subject.checkpoint)
        processes = {server.url: server for server in servers}
        engine = await open_engine(
            list(processes), updates, vocab_size=300, processes=processes, lost_after=LOST_AFTER
        )

        async def renew(version, meanwhile=lambda: None):
            async with engine.weight_update(version) as update:
                await update.send(load_file(subject.checkpoint / "model.safetensors"))
                meanwhile()

        await renew(1)
        try:
            yield engine, renew
        finally:
            # The next test goes on with the servers as they are now.
            servers[:] = engine._fleet._processes.values()
            engine._fleet._processes.clear()
            await engine.close()

    return attach


async def respond(engine, groups=4):
    """Responses to a few groups, and what went wrong."""
    responder = Responder(engine, Numbers(), stop_token_ids=[], seed=0, retries=2)
    made = [[Sample("", group=g, index=i, prompt_tokens=[5, 6, g]) for i in range(2)] for g in range(groups)]
    errors = await asyncio.gather(*(responder.respond(group, SAMPLING, lambda tokens: None) for group in made))
    return [sample for group in made for sample in group], [error for found in errors for error in found]


def assert_whole(samples, version):
    for sample in samples:
        assert sample.status in (Status.COMPLETED, Status.TRUNCATED)
        assert len(sample.tokens) == len(sample.log_probs) == len(sample.versions)
        assert set(sample.versions) == {version}


async def until(condition, seconds=180):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=lambda sent: sent.name)
def test_requests_move_and_the_server_comes_back_with_the_next_weights(opens, servers, sent):
    async def run():
        async with opens() as (engine, renew):
            generating = asyncio.create_task(respond(engine))
            await until(lambda: any(flight.answer.tokens for flight in engine._flights.values()))
            os.killpg(servers[0].pid, sent)
            samples, errors = await generating
            assert errors == []
            assert_whole(samples, 1)
            assert [worker.url for worker in engine.workers] == [servers[1].url]
            await until(lambda: engine._fleet.joining)
            assert len(engine.workers) == 1
            await renew(2)
            assert len(engine.workers) == 2
            samples, errors = await respond(engine)
            assert errors == []
            assert_whole(samples, 2)
            await engine.health()

    asyncio.run(run())


def test_a_server_that_is_killed_under_a_sync_is_left_out_of_it(opens, servers):
    async def run():
        async with opens() as (engine, renew):
            with pytest.raises(LostError):
                await renew(2, meanwhile=lambda: os.killpg(servers[0].pid, signal.SIGKILL))
            await renew(2)
            samples, errors = await respond(engine)
            assert errors == []
            assert_whole(samples, 2)

    asyncio.run(run())
