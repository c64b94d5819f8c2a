"""An SGLang engine on servers that misbehave.

They are stand-ins that speak HTTP like it and count instead of thinking: faults of real ones cannot be ordered.
"""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rlcore.config.generation import Sampling
from rlcore.data.sample import Sample, Status
from rlcore.errors import RlcoreError, fail
from rlcore.rollout import responses
from rlcore.rollout.responses import Responder
from rlcore.rollout.sglang import fleet
from rlcore.rollout.sglang.client import Client, ServerLost
from rlcore.rollout.sglang.engine import SGLangEngine
from rlcore.rollout.sglang.fleet import Fleet
from rlcore.rollout.sglang.server import free_port

NEW = 12
SAMPLING = Sampling(max_response_tokens=NEW)


class Counter:
    """A server whose every token is the number of tokens before it. `fault` says what happens at its fourth."""

    def __init__(self, fault=None, port=None):
        self.fault = fault
        self.version = 0
        self.asked = []
        self.copies = []
        self.is_hanging = self.refuses_weights = False
        app = web.Application(middlewares=[self._stall])
        posts = ["abort_request", "pause_generation", "continue_generation", "flush_cache"]
        app.add_routes([web.post(f"/{route}", self._good) for route in posts])
        app.add_routes(
            [
                web.get("/v1/loads", self._loads),
                web.get("/model_info", self._model),
                web.get("/health", self._good),
                web.get("/server_info", self._describe),
                web.get("/openapi.json", self._describe),
                web.post("/generate", self._generate),
                web.post("/update_weight_version", self._number),
                web.post("/load", self._load),
            ]
        )
        self.server = TestServer(app, port=port)

    @web.middleware
    async def _stall(self, request, handler):
        while self.is_hanging:
            await asyncio.sleep(0.01)
        return await handler(request)

    async def _good(self, request):
        return web.json_response({"success": True})

    async def _describe(self, request):
        state = {"effective_max_running_requests_per_dp": 8}
        return web.json_response({"version": "0", "internal_states": [state], "paths": {}})

    async def _loads(self, request):
        return web.json_response({"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0}]})

    async def _model(self, request):
        return web.json_response({"weight_version": str(self.version)})

    async def _number(self, request):
        self.version = int((await request.json())["new_version"])
        return await self._good(request)

    async def _load(self, request):
        if self.fault == "dies":
            request.transport.abort()
            await self.server.close()
        return await self._good(request)

    async def _generate(self, request):
        body = await request.json()
        given, wanted = len(body["input_ids"]), body["sampling_params"]["max_new_tokens"]
        self.asked.append(given)
        self.copies.append(body.get("data_parallel_rank"))
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for made in range(1, wanted + 1):
            if made == 4 and self.fault:
                await self._misbehave(request, answer)
            await answer.write(self._part(given + made - 1, made, wanted))
            await asyncio.sleep(0)
        await answer.write_eof()
        return answer

    def _part(self, token, made, wanted):
        meta = {
            "id": "any",
            "completion_tokens": made,
            "weight_version": str(self.version),
            "output_token_logprobs": [[-1.0, token, None]],
            "finish_reason": {"type": "length"} if made == wanted else None,
        }
        return b"data: " + json.dumps({"meta_info": meta}).encode() + b"\n\n"

    async def _misbehave(self, request, answer):
        if self.fault == "breaks":
            self.fault = None
            error = {"error": {"code": 500, "message": "out of memory"}}
            await answer.write(b"data: " + json.dumps(error).encode() + b"\n\n")
        elif self.fault == "dies":
            # As the kernel does for a process that is gone: what was written still arrives.
            request.transport.close()
            await self.server.close()
        elif self.fault == "hangs":
            self.is_hanging = True
            await asyncio.Event().wait()
        elif self.fault == "is slow":
            await asyncio.sleep(0.3)


class Process:
    """What holds a server and its successor, which comes when it `may_come`."""

    log = "its log"

    def __init__(self, server, successor=None):
        self.server, self.successor = server.server, successor and successor.server
        self.may_come = asyncio.Event()
        self.is_back = False

    @property
    def alive(self):
        return self.is_back or not self.server.closed

    def stop(self):
        pass

    def again(self):
        if not self.successor:
            raise fail("server", "its node has left")
        return self

    async def wait_healthy(self):
        await self.may_come.wait()
        await self.successor.start_server()
        self.is_back = True


class Loading:
    """A transport of nothing, which every server has to acknowledge."""

    torn = False

    async def send(self, bucket):
        pass


@asynccontextmanager
async def loading(workers, version):
    yield Loading()
    await asyncio.gather(*(worker.post("/load") for worker in workers))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(responses, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(fleet, "LOOK_SECONDS", 0.05)


@asynccontextmanager
async def serving(*servers, router=None, lost_after=30.0, process=None):
    """An engine on these, through a router where one is given, and its fleet; `process` holds the first."""
    for server in (*servers, router) if router else servers:
        await server.server.start_server()
    gate = Client(str(router.server.make_url("/"))) if router else None
    workers = [Client(str(server.server.make_url("/"))) for server in servers]
    processes = {workers[0].url: process} if process else {}
    made = Fleet(workers, processes, lost_after=lost_after, router=gate)
    made.start_watching()
    engine = SGLangEngine(made, loading, vocab_size=1000, router=gate)
    try:
        yield engine, made
    finally:
        for server in (*servers, router) if router else servers:
            server.is_hanging = False
        await engine.close()
        await asyncio.gather(*(server.server.close() for server in servers))


async def respond(engine, count=4, number=0):
    """Answer `count` samples of one group; returns them and what went wrong."""
    responder = Responder(engine, Letters(), stop_token_ids=[], seed=0, retries=2)
    group = [Sample("", group=number, index=i, prompt_tokens=[7, 7, 7]) for i in range(count)]
    errors = await responder.respond(group, SAMPLING, lambda tokens: None)
    return group, errors


class Letters:
    def decode(self, tokens):
        return "".join(map(chr, tokens))


def assert_whole(group):
    for sample in group:
        assert sample.status is Status.TRUNCATED
        assert sample.tokens == list(range(3, 3 + NEW))
        assert len(sample.log_probs) == len(sample.versions) == NEW


@pytest.mark.parametrize(("copies", "expected"), [(2, [0, 0, 0, 1, 1, 1]), (1, [None] * 6)])
def test_a_group_stays_on_one_copy_of_attention_and_groups_spread_over_them(copies, expected):
    async def run():
        server = Counter()
        async with serving(server) as (engine, _):
            (worker,) = engine.workers
            worker.info = replace(worker.info, capacity=8, arguments={"dp_size": copies})
            await asyncio.gather(*(respond(engine, 3, number) for number in range(2)))
        assert sorted(server.copies, key=str) == expected

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_requests_of_a_server_that_dies_or_hangs_go_on_at_another_with_what_they_have(fault):
    async def run():
        bad, good = Counter(fault), Counter()
        async with serving(bad, good, lost_after=2.0) as (engine, made):
            group, errors = await respond(engine)
            assert errors == []
            assert_whole(group)
            assert len(made.serving) == 1
            # Three tokens had come from the first server.
            assert 3 + 3 in good.asked
            await respond(engine)
            assert len(bad.asked) <= 4

    asyncio.run(run())


@pytest.mark.parametrize("fault", ["dies", "breaks", "hangs"])
def test_without_its_router_an_engine_asks_servers_themselves_and_says_so_once(fault, caplog):
    async def run():
        router, server = Counter(fault), Counter()
        lost_after = 2.0 if fault == "hangs" else 30.0
        async with serving(server, router=router, lost_after=lost_after) as (engine, made):
            group, errors = await respond(engine)
            assert errors == []
            assert_whole(group)
            assert 3 + 3 in server.asked
            assert len(made.serving) == 1

    asyncio.run(run())
    assert sum("requests go on without it" in text for text in caplog.messages) == (fault != "breaks")


@pytest.mark.parametrize("fault", ["breaks", "is slow"])
def test_a_server_that_only_stumbles_stays(fault):
    async def run():
        async with serving(Counter(fault)) as (engine, made):
            group, errors = await respond(engine, count=1)
            assert errors == []
            assert_whole(group)
            assert len(made.serving) == 1

    asyncio.run(run())


def test_where_no_server_is_left_a_plain_sentence_says_so():
    async def run():
        async with serving(Counter("dies")) as (engine, _):
            _, errors = await respond(engine, count=1)
            assert "no SGLang server is left that has the current weights" in errors[0]
            with pytest.raises(RlcoreError, match="no SGLang server is left"):
                await engine.pause()

    asyncio.run(run())


def test_requests_wait_for_the_successor_of_the_only_server_and_go_on_with_what_they_have():
    async def run():
        port = free_port()
        first, second = Counter(port=port), Counter(port=port)
        process = Process(first, second)
        async with serving(first, process=process) as (engine, _):
            await update(engine, 1)
            first.fault = "dies"
            answering = asyncio.create_task(respond(engine, count=1))
            await until(lambda: engine.needs_weights)
            updating = asyncio.create_task(update(engine, 2))
            process.may_come.set()
            await updating
            (sample,), errors = await answering
            assert errors == []
            assert_whole([sample])
            assert second.asked == [3 + 3]
            assert sample.versions == [1] * 3 + [2] * (NEW - 3)
            await second.server.close()

    asyncio.run(run())


def test_before_any_update_a_successor_serves_at_once():
    async def run():
        port = free_port()
        first, second = Counter("dies", port), Counter(port=port)
        process = Process(first, second)
        process.may_come.set()
        async with serving(first, process=process) as (engine, _):
            group, errors = await respond(engine)
            assert errors == []
            assert_whole(group)
            await second.server.close()

    asyncio.run(run())


def test_where_the_only_server_cannot_be_started_again_waiting_ends():
    async def run():
        first = Counter()
        async with serving(first, process=Process(first)) as (engine, _):
            await update(engine, 1)
            first.fault = "dies"
            _, errors = await respond(engine, count=1)
            assert "no SGLang server is left that has the current weights" in errors[0]
            with pytest.raises(RlcoreError, match="no SGLang server is left"):
                await update(engine, 2)

    asyncio.run(run())


def test_a_server_that_dies_under_an_update_is_left_out_of_the_next():
    async def run():
        bad, good = Counter("dies"), Counter()
        async with serving(bad, good) as (engine, made):
            with pytest.raises(ServerLost):
                await update(engine, 5)
            assert len(made.serving) == 1
            await update(engine, 5)
            group, _ = await respond(engine)
            assert_whole(group)
            assert {version for sample in group for version in sample.versions} == {5}

    asyncio.run(run())


def test_a_newcomer_is_asked_for_nothing_before_it_has_the_newest_weights():
    async def run():
        old, new = Counter(), Counter()
        async with serving(old, new) as (engine, made):
            made.joining.append(made.serving.pop())
            await respond(engine)
            assert new.asked == []
            await update(engine, 2)
            group, _ = await respond(engine, count=100)
            assert_whole(group)
            assert new.asked
            assert {version for sample in group for version in sample.versions} == {2}
            assert new.version == old.version == 2

    asyncio.run(run())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def update(engine, version):
    async with engine.weight_update(version):
        pass
