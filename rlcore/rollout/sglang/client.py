"""Speaks HTTP with one SGLang server. Everything has a time-out, and no proxy stands between the two.

What a server refuses is an RlcoreError with its words; a server that does not answer, or says that it is
broken, is a ServerLost. What is sent where, and what happens then, is the engine's.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from rlcore.errors import fail
from rlcore.rollout.engine import Health, LostError, PauseMode, Request
from rlcore.rollout.sglang.answer import Answer, version_number

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
# What concerns all weights of a model, but moves none: making them usable, summing them up.
UPDATE_SECONDS = 300.0
# The slowest disk or network that weights are loaded from.
LOADED_PER_SECOND = 100e6
# A request is silent while it is queued or its server is paused for new weights.
SILENCE_SECONDS = 1800.0
# Tokens a part of a stream that nobody watches: few enough to lose little, many enough to cost little.
PART_TOKENS = 128


class ServerLost(LostError):
    """A server did not answer in time, broke the connection, or says that it is broken."""


@dataclass(frozen=True)
class ServerInfo:
    """What a server says of itself. `capacity` counts sequences that it decodes together."""

    release: str
    capacity: int
    routes: frozenset[str]
    arguments: Mapping[str, Any]

    @property
    def seeded(self) -> bool:
        """Whether a request's seed decides its draws."""
        return bool(self.arguments.get("enable_deterministic_inference"))

    @property
    def copies(self) -> int:
        """Of attention, each with requests of its own."""
        return int(self.arguments.get("dp_size") or 1)

    @property
    def releases_memory(self) -> bool:
        return bool(self.arguments.get("enable_memory_saver"))

    @property
    def sends_parts(self) -> bool:
        """Whether each part of a stream holds new tokens only; else streams cost the square of their length."""
        return bool(self.arguments.get("incremental_streaming_output"))


class Client:
    """One server, or a router in front of some; `describe` comes first. Calls belong to one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.info = ServerInfo("", 1, frozenset(), {})
        self._session: aiohttp.ClientSession | None = None

    async def describe(self) -> ServerInfo:
        """Ask the server what it is and can do."""
        said = await self.get("/server_info")
        paths = (await self.get("/openapi.json"))["paths"]
        capacity = min(
            state.get("effective_max_running_requests_per_dp") or said.get("max_running_requests") or 1
            for state in said["internal_states"]
        )
        self.info = ServerInfo(said["version"], capacity * (said.get("dp_size") or 1), frozenset(paths), said)
        return self.info

    async def generate(
        self, request: Request, *, rid: str, cache: str = "", copy: int | None = None
    ) -> AsyncIterator[Answer]:
        """Yield the answer each time that it has grown; the last has a `finish`.

        `rid` is the request's name at the server: none may be the beginning of another's. Prefixes are shared
        among requests of the same `cache` only. `copy` is the one of attention that is to have the request, by
        default the server's choice.
        """
        answer = Answer()
        body = self._body(request, rid, cache)
        if copy is not None:
            # The name that routers hand on; later releases call it routed_dp_rank, and take both.
            body["data_parallel_rank"] = copy
        with self._losing():
            async with self._open().post(f"{self.url}/generate", json=body, timeout=_STREAM) as response:
                if response.status >= 400:
                    self._refuse(response.status, await response.text())
                async for part in _parts(response):
                    if "error" in part:
                        self._refuse(part["error"].get("code", 400), part["error"]["message"])
                    answer.take(part["meta_info"])
                    yield answer
        if not answer.finish:
            raise ServerLost(f"{self.url} ended its answer in the middle")

    async def abort(self, rids: Sequence[str] | None = None) -> None:
        """End these requests, or all; each answers with what it has made."""
        bodies = [{"abort_all": True}] if rids is None else [{"rid": rid} for rid in rids]
        await asyncio.gather(*(self.post("/abort_request", body) for body in bodies))

    async def pause(self, mode: PauseMode) -> None:
        await self.post("/pause_generation", {"mode": mode})

    async def resume(self) -> None:
        await self.post("/continue_generation")

    async def flush(self) -> None:
        """Empty the cache of prefixes; refused while requests run."""
        await self.post("/flush_cache")

    async def release_memory(self, kinds: Sequence[str]) -> None:
        """Give up "weights", "kv_cache" or "cuda_graph", memory and contents; nothing may be running."""
        await self.post("/release_memory_occupation", {"tags": list(kinds)}, timeout=UPDATE_SECONDS)

    async def occupy_memory(self, kinds: Sequence[str]) -> None:
        """Take it back. A server that has not given up one of these ends."""
        await self.post("/resume_memory_occupation", {"tags": list(kinds)}, timeout=UPDATE_SECONDS)

    async def begin_update(self) -> None:
        """Make weights loadable, where servers ask for that (0.5.21 and later)."""
        if "/begin_weight_update" in self.info.routes:
            await self.post("/begin_weight_update")

    async def end_update(self) -> None:
        """Make loaded weights usable."""
        if "/end_weight_update" in self.info.routes:
            await self.post("/end_weight_update", timeout=UPDATE_SECONDS)

    async def set_version(self, version: int) -> None:
        """Number the weights that the server has; requests go on."""
        await self.post("/update_weight_version", {"new_version": str(version), "abort_all_requests": False})

    async def version(self) -> int:
        return version_number((await self.get("/model_info"))["weight_version"])

    async def health(self) -> Health:
        """Ask the process that runs the model. Raises ServerLost if it does not answer."""
        loads = (await self.get("/v1/loads"))["loads"]
        running, queued = (sum(load[key] for load in loads) for key in ("num_running_reqs", "num_waiting_reqs"))
        return Health(True, await self.version(), running, queued)

    async def get(self, route: str, *, timeout: float = ANSWER_SECONDS) -> Any:
        return await self._ask("GET", route, None, timeout)

    async def post(
        self, route: str, body: Mapping[str, Any] | None = None, *, timeout: float = ANSWER_SECONDS
    ) -> Any:
        """Call a route and return what it answers: JSON, or a text. `timeout` is in seconds."""
        return await self._ask("POST", route, body or {}, timeout)

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Servers queue requests themselves, better than a limit of connections would.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self._session

    def _body(self, request: Request, rid: str, cache: str) -> dict[str, Any]:
        params = request.params
        sampling = {
            "max_new_tokens": params.max_new_tokens - len(request.tokens),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "stop": list(params.stop),
            "stop_token_ids": list(params.stop_token_ids),
            # Servers stop at the model's own tokens, too. Told not to, they pass over these ids as well.
            "ignore_eos": not params.stop_token_ids,
            # Stop strings are looked for in the text with its special tokens.
            "skip_special_tokens": False,
            "stream_interval": 1 if request.stream else PART_TOKENS,
        }
        if self.info.seeded:
            sampling["sampling_seed"] = _seed(request)
        return {
            "rid": rid,
            "input_ids": [*request.prompt_tokens, *request.tokens],
            "sampling_params": sampling,
            "return_logprob": True,
            "stream": request.stream or self.info.sends_parts,
            "extra_key": cache,
        }

    async def _ask(self, method: str, route: str, body: Mapping[str, Any] | None, seconds: float) -> Any:
        timeout = aiohttp.ClientTimeout(total=seconds, connect=CONNECT_SECONDS)
        with self._losing():
            async with self._open().request(method, self.url + route, json=body, timeout=timeout) as response:
                text = await response.text()
        if response.status >= 400:
            self._refuse(response.status, text)
        answer = json.loads(text) if response.content_type == "application/json" and text else text
        if isinstance(answer, dict) and answer.get("success") is False:
            self._refuse(400, answer.get("message", text))
        return answer

    def _refuse(self, status: int, text: str) -> None:
        if status >= 500:
            raise ServerLost(f"{self.url} answers {status}: {text[:500]}")
        raise fail(self.url, f"the SGLang server refuses ({status}): {text[:2000]}")

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise ServerLost(f"{self.url} does not answer: {type(error).__name__} {error}".rstrip()) from error


_STREAM = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)


async def _parts(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The parts of an answer: server-sent events, or one JSON object."""
    if response.content_type == "application/json":
        yield await response.json()
        return
    rest = b""
    async for data in response.content.iter_any():
        *events, rest = (rest + data).split(b"\n\n")
        for event in events:
            if (text := event.removeprefix(b"data: ")) != b"[DONE]":
                yield json.loads(text)


def load_seconds(nbytes: int) -> float:
    """How long a server may take to load so many bytes of weights, in seconds."""
    return ANSWER_SECONDS + nbytes / LOADED_PER_SECOND


def _seed(request: Request) -> int:
    """A number below 2**31 that follows from the request's randomness alone."""
    digest = hashlib.blake2b(repr((request.seed, *request.key)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
