"""What servers say of their weights, each for itself: version, checksum, and log-probs of a probe."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

from rlcore.errors import fail
from rlcore.rollout.engine import Request
from rlcore.rollout.sglang.answer import Answer
from rlcore.rollout.sglang.client import UPDATE_SECONDS, Client


async def check_versions(workers: Sequence[Client], version: int) -> None:
    """Raises RlcoreError for a server that says that it has other weights."""
    said = await asyncio.gather(*(worker.version() for worker in workers))
    for worker, found in zip(workers, said, strict=True):
        if found != version:
            raise fail(worker.url, f"says that it has weights {found}, not {version}", "restart the server")


async def check_checksums(workers: Sequence[Client]) -> None:
    """Raises RlcoreError where servers that hold the same parts of the model hold different weights."""
    route, body = "/weights_checker", {"action": "checksum"}
    said = await asyncio.gather(*(one.post(route, body, timeout=UPDATE_SECONDS) for one in workers))
    first: dict[int, tuple[str, str]] = {}
    for worker, answer in zip(workers, said, strict=True):
        other, checksum = first.setdefault(len(answer["ranks"]), (worker.url, answer["per_engine_checksum"]))
        if checksum != answer["per_engine_checksum"]:
            message = f"has other weights than {other}, by their checksums, after the same update"
            raise fail(worker.url, message, "restart the server, and see its log")


async def probe(worker: Client, request: Request) -> Answer:
    """The server's own answer to a request, computed anew."""
    name = uuid4().hex
    answer = Answer()
    async for grown in worker.generate(request, rid=name, cache=name):
        answer = grown
    return answer
