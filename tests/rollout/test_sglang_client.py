"""What goes wrong between client and server has one of two names: refused, or lost."""

import asyncio
import json

import pytest
from aiohttp import web

from rlcore.errors import RlcoreError
from rlcore.rollout.engine import Request, SamplingParams
from rlcore.rollout.sglang.client import Client, ServerLost

PART = {
    "meta_info": {
        "id": "r",
        "completion_tokens": 1,
        "output_token_logprobs": [[-1.0, 5, None]],
        "weight_version": "0",
    }
}


async def breaks_off(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(f"data: {json.dumps(PART)}\n\n".encode())
    request.transport.close()
    return response


async def ends_early(request):
    return web.Response(text=f"data: {json.dumps(PART)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


async def refuses(request):
    error = {"error": {"message": "input is too long", "code": 400}}
    return web.Response(text=f"data: {json.dumps(error)}\n\n", content_type="text/event-stream")


async def hangs(request):
    await asyncio.sleep(60)


async def bad(request):
    return web.json_response({"message": "no such group"}, status=400)


async def unsuccessful(request):
    return web.json_response({"success": False, "message": "wrong shape"})


async def broken(request):
    return web.Response(text="out of memory", status=500)


def played(handler, scene):
    """Play a scene with a client of a server that answers every request so."""

    async def play():
        app = web.Application()
        app.router.add_post("/{route}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        client = Client(f"http://{host}:{port}")
        try:
            return await scene(client)
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(play())


async def generate(client, heard):
    request = Request("r", [1, 2], SamplingParams(max_new_tokens=4))
    async for answer in client.generate(request, rid="r"):
        heard.append(list(answer.tokens))


@pytest.mark.parametrize(("handler", "words"), [(bad, "no such group"), (unsuccessful, "wrong shape")])
def test_a_refusal_has_the_servers_words(handler, words):
    with pytest.raises(RlcoreError, match=words):
        played(handler, lambda client: client.post("/update"))


@pytest.mark.parametrize(
    ("handler", "words", "seconds"), [(broken, "500: out of memory", 30.0), (hangs, "does not answer", 0.2)]
)
def test_a_server_that_is_broken_or_silent_is_lost(handler, words, seconds):
    with pytest.raises(ServerLost, match=words):
        played(handler, lambda client: client.post("/update", timeout=seconds))


def test_a_server_that_is_not_there_is_lost():
    async def ask():
        client = Client("http://127.0.0.1:9")
        try:
            await client.get("/health")
        finally:
            await client.close()

    with pytest.raises(ServerLost, match="does not answer"):
        asyncio.run(ask())


@pytest.mark.parametrize("handler", [breaks_off, ends_early])
def test_what_came_before_a_server_was_lost_is_there(handler):
    heard = []
    with pytest.raises(ServerLost):
        played(handler, lambda client: generate(client, heard))
    assert heard == [[5]]


def test_a_refused_request_says_why():
    with pytest.raises(RlcoreError, match="input is too long"):
        played(refuses, lambda client: generate(client, []))


def test_no_proxy_stands_between(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(RlcoreError, match="no such group"):
        played(bad, lambda client: client.post("/update"))
