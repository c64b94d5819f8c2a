"""Policy: the model in training as the loops use it, on however many ranks it is spread."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlcore.cluster.group import WorkerGroup
from rlcore.controller.throughput import Throughput
from rlcore.data.train_sample import TrainSample

if TYPE_CHECKING:
    import torch

    from rlcore.sync.parcel import Packing, Parcel
    from rlcore.trainer.objectives import Objective

T = TypeVar("T")

_LOOK_SECONDS = 1.0


class Policy:
    """Calls the trainers of a worker group as one; see `rlcore.trainer.trainer.Trainer` for what they do.

    With `throughput`, steps report that too.
    """

    def __init__(self, group: WorkerGroup, throughput: Throughput | None = None) -> None:
        self.group = group
        self._throughput = throughput

    @property
    def alive(self) -> bool:
        """Whether its ranks can still be asked for anything."""
        return self.group.alive

    async def beside(
        self, work: Coroutine[Any, Any, T], meanwhile: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """Await work that leaves the ranks idle; if one of them ends, end it and raise RanksLostError.

        `meanwhile` is called about every second; what it raises ends the work, too.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_LOOK_SECONDS)
                self.group.check()
                if meanwhile and not task.done():
                    await meanwhile()
        finally:
            task.cancel()
            await asyncio.wait([task])
        return task.result()

    def log_probs(self, samples: Sequence[TrainSample]) -> "list[torch.Tensor]":
        """Log-prob of each response token under the current weights: float32 [t] per sample, in order."""
        return _in_order(self.group.call("log_probs", samples))

    def reference_log_probs(self, samples: Sequence[TrainSample]) -> "list[torch.Tensor]":
        """`log_probs` under the reference policy."""
        return _in_order(self.group.call("reference_log_probs", samples))

    def train_step(self, samples: Sequence[TrainSample], objective: "Objective") -> dict[str, float]:
        """Take one optimizer step on the whole step's samples; return its metrics."""
        started = time.perf_counter()
        metrics: dict[str, float] = self.group.call("train_step", samples, objective)[0]
        if self._throughput is None:
            return metrics
        lengths = [len(sample.tokens) for sample in samples]
        return metrics | self._throughput.metrics(lengths, time.perf_counter() - started)

    def release(self, *kinds: str) -> int:
        """Have these kinds of memory given up; see `rlcore.trainer.offload`, which the trainer then has to be.

        Returns the bytes that no rank's device holds any more.
        """
        return sum(self.group.call("release", *kinds))

    def occupy(self, *kinds: str) -> None:
        """Have them taken back."""
        self.group.call("occupy", *kinds)

    def weights(
        self, most_bytes: int, packing: "Packing | None" = None
    ) -> "Generator[dict[str, torch.Tensor] | Parcel, None, None]":
        """The current weights by hub name, in bundles of at most `most_bytes`; a larger module comes alone.

        As tensors, or packed for servers. To end before the last one, `close` the iterator.
        """
        bucket = self.group.call("first_weights", most_bytes, packing)[0]
        try:
            while bucket:
                yield bucket
                bucket = self.group.call("next_weights")[0]
        except GeneratorExit:
            self.give_up_weights()
            raise

    def give_up_weights(self) -> None:
        """Let go whoever waits for a bundle that does not come."""
        self.group.call("give_up_weights")

    def save(self, folder: Path) -> None:
        """Write everything that training needs to go on."""
        self.group.call("save", folder)

    def start_saving(self, folder: Path) -> None:
        """Begin to `save` in the background; training may go on."""
        self.group.call("start_saving", folder)

    def is_saving(self) -> bool:
        """Whether a rank still writes what `start_saving` began."""
        return any(self.group.call("is_saving"))

    def finish_saving(self) -> None:
        """Wait until all that `start_saving` began is written."""
        self.group.call("finish_saving")

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote; returns whether random states are those of the save.

        They belong to ranks, so that another layout begins new ones.
        """
        return all(self.group.call("load", folder))

    def save_hf(self, folder: Path) -> None:
        """Write a checkpoint in Hugging Face format."""
        self.group.call("save_hf", folder)


def _in_order(reports: "Sequence[dict[int, torch.Tensor]]") -> "list[torch.Tensor]":
    """Each sample is reported by one rank."""
    by_index = {index: found for report in reports for index, found in report.items()}
    return [by_index[index] for index in range(len(by_index))]
