"""A worker group of many ranks: one process each, as actors of a Ray that it has for itself or has joined."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from rlcore.cluster import heartbeat, process_id, transport
from rlcore.cluster.group import Make, RanksLostError, Stall
from rlcore.cluster.ray_home import RayHome
from rlcore.cluster.worker import Outcome, Worker
from rlcore.errors import Problem, RlcoreError

# Ranks that fail together report within moments; one that does not hangs in a collective with who failed.
_GRACE_SECONDS = 5.0
# An answer takes milliseconds, or does not come.
_ANSWER_SECONDS = 2.0
_CONCURRENCY = {"watch": 1, "life": 1}


class RayGroup:
    """Makes a worker on each of `ranks` processes, where `home` has them; `home` ends with the group.

    Raises RlcoreError as a worker's maker does on any rank, RanksLostError where a process ends.
    """

    def __init__(self, make: Make, ranks: int, home: RayHome) -> None:
        self._during = "start"
        self._reason = ""
        self._busy = False
        self._logs: Path | None = None
        self._end: RanksLostError | None = None
        self._lives: list[ray.ObjectRef] = []
        self._home = home
        logs = [_log(home.folder, rank) for rank in range(ranks)]
        try:
            transport.register()
            actor = ray.remote(concurrency_groups=_CONCURRENCY)(Worker)
            self._workers = [
                actor.options(**home.actor_options(rank)).remote(rank, ranks, log, Path.cwd())
                for rank, log in enumerate(logs)
            ]
            self._processes = ray.get([worker.process.remote() for worker in self._workers])
            self._lives = [worker.live.remote() for worker in self._workers]
            meeting, maker = self._workers[0].host.remote(), ray.put(make)
            self._results([worker.start.remote(maker, meeting) for worker in self._workers])
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return bool(self._lives)

    def call(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        self.check()
        self._during = method
        arguments = ray.put((args, kwargs))
        return self._results([worker.call.remote(method, arguments) for worker in self._workers])

    def check(self) -> None:
        if self._end:
            raise self._end
        # Another thread may give the ranks up in between.
        lives = self._lives
        ended = ray.wait(lives, timeout=0)[0] if lives else []
        if ended:
            raise self._lost(self._died(lives.index(ended[0])))

    def log_to(self, folder: Path) -> None:
        self.check()
        self._during = "log_to"
        self._results([worker.log_to.remote(_log(folder, rank)) for rank, worker in enumerate(self._workers)])
        self._logs = folder

    def stall(self) -> Stall | None:
        if not self._busy:
            return None
        beats = self._beats(range(len(self._workers)))
        if any(beats.values()):
            self._heard = time.monotonic()
        return heartbeat.stall(self._during, beats, time.monotonic() - self._heard)

    def _beats(self, ranks: Iterable[int]) -> dict[int, heartbeat.Beat | None]:
        """What these ranks say that they do; None for one that says nothing."""
        asked = {self._workers[rank].beat.remote(): rank for rank in ranks}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
        beats: dict[int, heartbeat.Beat | None] = dict.fromkeys(asked.values())
        for answer in answered:
            with suppress(RayActorError):
                beats[asked[answer]] = ray.get(answer)
        return beats

    def give_up(self, reason: str) -> None:
        self._reason = reason
        self._kill()

    def close(self) -> None:
        self._kill()
        self._home.stop()

    def _results(self, calls: list[ray.ObjectRef]) -> list[Any]:
        self._busy, self._heard = True, time.monotonic()
        try:
            outcomes = self._outcomes(calls)
        finally:
            self._busy = False
        if all(outcome.is_good for outcome in outcomes.values()):
            return [outcomes[rank].value for rank in range(len(calls))]
        raise self._failure(outcomes)

    def _outcomes(self, calls: list[ray.ObjectRef]) -> dict[int, Outcome]:
        """Outcomes by rank, as they come; once one is bad, of those that end within the time of grace."""
        outcomes: dict[int, Outcome] = {}
        pending, failed = list(calls), float("inf")
        while pending and self._may_end(map(calls.index, pending), time.monotonic() - failed):
            # A bounded wait, so that Ctrl-C is heard.
            ended, pending = ray.wait(pending, timeout=1.0)
            for call in ended:
                rank = calls.index(call)
                try:
                    outcomes[rank] = ray.get(call)
                except RayActorError:
                    raise self._lost(self._died(rank)) from None
                except RayError as error:
                    # Before the worker was reached: what it was to be made of cannot be imported there.
                    outcomes[rank] = Outcome(cause=str(error).strip().splitlines()[-1], trace=str(error))
                if not outcomes[rank].is_good:
                    failed = min(failed, time.monotonic())
        return outcomes

    def _may_end(self, ranks: Iterable[int], late: float) -> bool:
        """Whether to wait for these ranks, `late` seconds after another has failed."""
        if late < _GRACE_SECONDS:
            return True
        # They may be the cause, on a node that has gone.
        return late < self._home.silence_seconds and None in self._beats(ranks).values()

    def _failure(self, outcomes: dict[int, Outcome]) -> RlcoreError:
        """The error for outcomes of which some are bad. Ranks that all refused can go on; others cannot."""
        problems = self._problems(outcomes)
        if len(outcomes) == len(self._workers) and all(outcome.problems for outcome in outcomes.values()):
            return RlcoreError(problems)
        crash = next(((rank, outcome) for rank, outcome in outcomes.items() if outcome.cause), None)
        if crash is None:
            return self._lost(*problems)
        rank, outcome = crash
        message = f"{self._during} ended in {outcome.cause}"
        error = self._lost(Problem(self._name(rank), message, self._hint(rank)), *problems)
        error.add_note(outcome.trace)
        return error

    def _problems(self, outcomes: Mapping[int, Outcome]) -> list[Problem]:
        """What ranks refused, each once; with the node where it is not so on all of them."""
        found: dict[Problem, list[int]] = {}
        for rank, outcome in outcomes.items():
            for problem in outcome.problems:
                found.setdefault(problem, []).append(rank)
        named = []
        for problem, ranks in found.items():
            nodes = dict.fromkeys(map(self._home.node, ranks))
            everywhere = len(ranks) == len(self._workers)
            places = [problem.place] if everywhere else [f"{node} {problem.place}".strip() for node in nodes]
            named += [replace(problem, place=place) for place in places]
        return named

    def _died(self, rank: int) -> Problem:
        when = f"during {self._during}" if self._busy else "between two calls"
        if self._home.has_left(rank):
            message = f"its node has left the cluster {when}"
            return Problem(self._name(rank), message, "bring the node back, then resume the run")
        message = f"its process ended {when}; a machine that runs out of memory ends processes like this"
        return Problem(self._name(rank), message, self._hint(rank))

    def _lost(self, *problems: Problem) -> RanksLostError:
        self._kill()
        self._end = RanksLostError(Problem("trainer ranks", self._reason) if self._reason else problems)
        return self._end

    def _name(self, rank: int) -> str:
        where = f"{self._home.node(rank)}, ".removeprefix(", ")
        return f"trainer rank {rank} ({where}pid {self._processes[rank].number})"

    def _hint(self, rank: int) -> str:
        return f"look into {_log(self._logs, rank)}" if self._logs else ""

    def _kill(self) -> None:
        """End all ranks at once: one that hangs, or is stopped, hears nothing else."""
        lives, self._lives = self._lives, []
        living = ray.wait(lives, num_returns=len(lives), timeout=0)[1] if lives else []
        for life in living:
            ray.kill(self._workers[lives.index(life)])
            process_id.end(self._processes[lives.index(life)])


def _log(folder: Path, rank: int) -> Path:
    return folder / f"trainer-{rank}.log"
