"""Who has which memory when, between a trainer and SGLang servers on the same GPUs.

Servers are stand-ins that keep account of their memory and refuse, where real ones end, to take back what they
have. Real ones give up memory on a GPU only.
"""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rlcore.config.schema import Recipe
from rlcore.controller.policy import Policy
from rlcore.controller.turns import Turns
from rlcore.rollout.sglang import fleet
from rlcore.rollout.sglang.client import Client, ServerInfo
from rlcore.rollout.sglang.engine import SGLangEngine
from rlcore.rollout.sglang.fleet import Fleet

INFO = ServerInfo("", 4, frozenset(), {"enable_memory_saver": True})
SHARED = Recipe.model_validate(
    {
        "model": {"checkpoint": "some/model"},
        "cluster": {"gpus_per_node": 2, "colocate": True},
        "rollout": {"engine": "sglang"},
    }
)


class Sleeper:
    """A server that writes down what becomes of its memory, and a handle of its process."""

    log, story, end = Path("log"), "", ""

    def __init__(self, name, diary):
        self.name, self.diary, self.released = name, diary, set()
        self.alive = True
        self.starts = 0
        self.seconds = 0.0
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/loads", self._loads),
                web.get("/model_info", self._model),
                web.get("/server_info", self._describe),
                web.get("/openapi.json", self._routes),
                web.post("/release_memory_occupation", self._release),
                web.post("/resume_memory_occupation", self._occupy),
                web.post("/{route}", self._good),
            ]
        )
        self.server = TestServer(app)

    @property
    def url(self):
        return str(self.server.make_url("")).rstrip("/")

    async def _loads(self, request):
        return web.json_response({"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0}]})

    async def _model(self, request):
        return web.json_response({"weight_version": "0"})

    async def _describe(self, request):
        return web.json_response(
            {"version": "0", "internal_states": [{"effective_max_running_requests_per_dp": 1}]}
        )

    async def _routes(self, request):
        return web.json_response({"paths": {}})

    async def _good(self, request):
        if word := {"load": "loads", "pause_generation": "holds"}.get(request.match_info["route"]):
            self.diary.append(f"{self.name} {word}")
        return web.json_response({"success": True})

    async def _release(self, request):
        kinds = (await request.json())["tags"]
        self.released |= set(kinds)
        self.diary.append(f"{self.name} gives {' '.join(sorted(kinds))}")
        return web.json_response({"success": True})

    async def _occupy(self, request):
        kinds = set((await request.json())["tags"])
        if not kinds <= self.released:
            return web.Response(text="KeyError", status=500)
        self.released -= kinds
        self.diary.append(f"{self.name} takes {' '.join(sorted(kinds))}")
        return web.json_response({"success": True})

    def stop(self):
        self.alive = False

    def again(self):
        """The same address, all memory of its own."""
        self.alive, self.released = True, set()
        self.starts += 1
        self.diary.append(f"{self.name} starts")
        return self

    async def wait_healthy(self):
        await asyncio.sleep(self.seconds)


class Ranks:
    """A worker group that writes down what it is asked."""

    alive = True

    def __init__(self, diary):
        self._diary = diary

    def call(self, method, *kinds):
        self._diary.append(f"trainer {'gives' if method == 'release' else 'takes'} {' '.join(kinds) or 'all'}")
        return [1_000_000_000, 2_000_000_000]


class Loading:
    torn = False


@asynccontextmanager
async def loading(workers, version):
    yield Loading()
    await asyncio.gather(*(worker.post("/load") for worker in workers))


@asynccontextmanager
async def sharing(*servers, recipe=SHARED):
    """The turns of a trainer and an engine on these servers, and that engine."""
    diary = servers[0].diary
    for one in servers:
        await one.server.start_server()
    workers = [Client(one.url) for one in servers]
    for worker in workers:
        worker.info = INFO
    made = Fleet(workers, {one.url: one for one in servers})
    made.start_watching()
    engine = SGLangEngine(made, loading, vocab_size=300)
    try:
        yield Turns(recipe, Policy(Ranks(diary)), engine), engine
    finally:
        await engine.close()
        await asyncio.gather(*(one.server.close() for one in servers))


async def sync(turns, engine, version):
    await turns.to_sync()
    async with engine.weight_update(version):
        pass
    await turns.to_generation()


async def step(turns, engine, version):
    await sync(turns, engine, version)
    await turns.to_training()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(fleet, "LOOK_SECONDS", 0.02)


def test_each_gives_up_its_memory_before_the_other_takes_it():
    diary = []

    async def run():
        async with sharing(Sleeper("server", diary)) as (turns, engine):
            await turns.to_training()
            diary.clear()
            await step(turns, engine, version=1)
            assert turns.metrics == {"memory/offloaded_gb": 3.0}

    asyncio.run(run())
    assert diary == [
        "trainer gives states gradients",
        "trainer takes weights",
        "server takes weights",
        "server loads",
        "trainer gives all",
        "server takes cuda_graph kv_cache",
        "server holds",
        "server gives cuda_graph kv_cache weights",
        "trainer takes all",
    ]


def test_a_trainer_scores_a_probe_while_servers_have_no_cache():
    diary = []

    async def run():
        async with sharing(Sleeper("server", diary)) as (turns, engine):
            await step(turns, engine, version=1)
            await sync(turns, engine, version=2)
            diary.clear()
            async with turns.for_a_score():
                diary.append("score")

    asyncio.run(run())
    assert diary == [
        "server holds",
        "server gives kv_cache",
        "score",
        "trainer gives all",
        "server takes kv_cache",
    ]


@pytest.mark.parametrize("cluster", [{"offload_train": False, "offload_rollout": False}, {}])
def test_nothing_moves_where_engines_generate_meanwhile_or_memory_stays(cluster):
    diary = []
    mode = "sync" if cluster else "one_step"
    shared = {"cluster": SHARED.cluster.model_copy(update=cluster)}
    recipe = SHARED.model_copy(update={**shared, "rollout": SHARED.rollout.model_copy(update={"mode": mode})})

    async def run():
        async with sharing(Sleeper("server", diary), recipe=recipe) as (turns, engine):
            await step(turns, engine, version=1)
            async with turns.for_a_score():
                pass

    asyncio.run(run())
    assert diary == ["server holds", "server loads"]


def test_a_server_that_ends_while_others_sleep_starts_when_there_is_memory_and_takes_back_nothing():
    diary = []

    async def run():
        steady, lost = Sleeper("steady", diary), Sleeper("lost", diary)
        async with sharing(steady, lost) as (turns, engine):
            await turns.to_training()
            lost.stop()
            while len(engine.workers) == 2:
                await asyncio.sleep(0.01)
            diary.clear()
            await sync(turns, engine, version=1)
            while not lost.starts:
                await asyncio.sleep(0.01)
            while not engine._fleet.joining:
                await asyncio.sleep(0.01)
            await step(turns, engine, version=2)
            assert len(engine.workers) == 2

    asyncio.run(run())
    assert [line for line in diary if line.startswith("lost")] == [
        "lost starts",
        "lost gives cuda_graph kv_cache weights",
        "lost takes weights",
        "lost loads",
        "lost takes cuda_graph kv_cache",
        "lost holds",
        "lost gives cuda_graph kv_cache weights",
    ]
    assert diary.index("steady takes cuda_graph kv_cache") < diary.index("lost starts")


def test_a_server_that_is_starting_when_the_others_sleep_is_waited_for():
    diary = []

    async def run():
        steady, late = Sleeper("steady", diary), Sleeper("late", diary)
        late.seconds = 0.2
        async with sharing(steady, late) as (turns, _):
            late.stop()
            while not late.starts:
                await asyncio.sleep(0.01)
            await turns.to_training()

    asyncio.run(run())
    assert diary.index("late starts") < diary.index("late gives cuda_graph kv_cache weights")
    assert diary[-1] == "trainer takes all"


def test_where_all_servers_are_lost_the_first_that_comes_back_gives_up_its_memory_for_the_sync():
    diary = []

    async def run():
        only = Sleeper("only", diary)
        async with sharing(only) as (turns, engine):
            await step(turns, engine, version=1)
            await sync(turns, engine, version=2)
            diary.clear()
            only.stop()
            while not engine.needs_weights:
                await asyncio.sleep(0.01)
            await sync(turns, engine, version=2)
            assert len(engine.workers) == 1

    asyncio.run(run())
    assert diary == [
        "only starts",
        "only gives cuda_graph kv_cache weights",
        "trainer gives states gradients",
        "trainer takes weights",
        "only takes weights",
        "only loads",
        "trainer gives all",
        "only takes cuda_graph kv_cache",
    ]
