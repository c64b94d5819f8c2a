"""A server's process on a node of the Ray cluster that a run has joined, where the run's bundle is.

An actor there holds it; it ends with the actor, and so with the run.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import ray
from ray.exceptions import RayError

from rlcore.cluster.cluster_ray import ClusterRay
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any
from rlcore.rollout.sglang.arguments import Command
from rlcore.rollout.sglang.server import Server, ServerProcess
from rlcore.telemetry.log_files import LogFile, LogFolder

# Ending a process takes moments, or its node is gone.
_STOP_SECONDS = 10.0
_CONCURRENCY = {"life": 1}


class _Keeper:
    """The actor on the server's node. It works where the run was started, as paths are relative to that."""

    def __init__(self, command: Command, log: Path, folder: Path) -> None:
        os.chdir(folder)
        if gpus := ray.get_gpu_ids():
            visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
            command = replace(command, environment={**command.environment, **visible})
        self._server: ServerProcess | None = None
        self._problems: Sequence[Problem] = ()
        try:
            self._server = ServerProcess(command, LogFolder(log.parent).file(log.name))
        except RlcoreError as error:
            self._problems = error.problems

    def problems(self) -> Sequence[Problem]:
        """Why it could not be started, if so."""
        return self._problems

    @ray.method(concurrency_group="life")
    def live(self) -> str:
        """Wait for the server's end; returns how it ended."""
        if self._server is None:
            return "no process"
        self._server.wait()
        return self._server.end()

    def story(self) -> str:
        return self._server.story() if self._server else ""

    def stop(self) -> None:
        if self._server:
            self._server.stop()


class RemoteServer(Server):
    """A process on node `index` of those that the run has reserved, with `gpus` of the run's own there.

    Which these are is Ray's choice. With 0 of them it takes what `command`'s environment names, if any.
    """

    def __init__(self, command: Command, log: LogFile, cluster: ClusterRay, index: int, gpus: int) -> None:
        """Start it. Raises RlcoreError where its node has left."""
        self.command = command
        self.url = command.url
        self._log = log
        self._cluster, self._index, self._gpus = cluster, index, gpus
        if cluster.node_has_left(index):
            raise fail(f"server at {self.url}", f"its node {self._node} has left the cluster")
        actor = ray.remote(concurrency_groups=_CONCURRENCY)(_Keeper)
        options = cluster.server_options(index, gpus)
        self._keeper = actor.options(**options).remote(command, self.log, Path.cwd())
        self._life = self._keeper.live.remote()

    @property
    def log(self) -> Path:
        return self._log.path.resolve()

    @property
    def alive(self) -> bool:
        return not ray.wait([self._life], timeout=0)[0]

    async def wait_started(self) -> None:
        with suppress(RayError):
            raise_if_any(await self._keeper.problems.remote())

    def end(self) -> str:
        if self.alive:
            return ""
        try:
            return f"{ray.get(self._life)} on node {self._node}"
        except RayError as error:
            return f"its actor on node {self._node}, {str(error).strip().splitlines()[-1]},"

    def story(self) -> str:
        try:
            said: str = ray.get(self._keeper.story.remote(), timeout=_STOP_SECONDS)
        except RayError:
            return f"{' '.join(self.command.words)}\n    see {self.log} on node {self._node}"
        return f"{said}\n    (all of it is in {self.log} on node {self._node})"

    def stop(self) -> None:
        # A kill alone would leave it to the guard, which may come after the next start on the same port.
        with suppress(RayError):
            ray.get(self._keeper.stop.remote(), timeout=_STOP_SECONDS)
        ray.kill(self._keeper)

    def again(self) -> Self:
        return type(self)(self.command, self._log, self._cluster, self._index, self._gpus)

    @property
    def _node(self) -> str:
        return self._cluster.address_of(self._index)
