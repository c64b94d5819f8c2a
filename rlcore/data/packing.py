"""Lays samples out for the trainer: into steps, ranks and micro-batches under a token cap.

Ranks wait for one another at every micro-batch: a step takes the sum, over its rounds, of the round's dearest
micro-batch. A round therefore holds micro-batches of like cost. Lengths and costs alone decide; tensors are
made elsewhere.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil

MicroBatches = list[list[int]]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: `ranks[r][m]` are the indices of the samples in micro-batch m of DP rank r.

    All ranks have equally many micro-batches, the dearest first; one is empty only for want of samples.
    `token_fill` is tokens / (micro-batches x cap). `lockstep_over_ideal` is the sum over m of the dearest
    micro-batch m, `makespan_over_ideal` the dearest rank's total, both over the mean total of a rank.
    """

    ranks: list[MicroBatches]
    token_fill: float
    lockstep_over_ideal: float
    makespan_over_ideal: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps in the order of the samples."""

    steps: list[Step]


def schedule(
    lengths: Sequence[int],
    *,
    dp: int,
    cp: int = 1,
    max_tokens_per_gpu: int,
    global_batch_size: int,
    cost: Callable[[int], float],
    multiple_of: int = 1,
) -> Schedule:
    """Cut samples in order into steps of `global_batch_size` and spread each step over `dp` ranks.

    `lengths` are tokens per sample; a micro-batch holds at most `max_tokens_per_gpu` x `cp` of them, or one
    longer sample alone. `cost(length)` is one sample's cost in any unit, such as FLOPs. Each rank gets the same
    number of micro-batches, the least multiple of `multiple_of` that fits. The arguments alone decide.
    """
    price = {length: cost(length) for length in set(lengths)}
    costs = [price[length] for length in lengths]
    layout = _Layout(lengths, costs, dp, max_tokens_per_gpu * cp, multiple_of)
    starts = range(0, len(lengths), global_batch_size)
    return Schedule([layout.step(range(len(lengths))[start : start + global_batch_size]) for start in starts])


@dataclass(frozen=True, slots=True)
class _Layout:
    lengths: Sequence[int]
    costs: Sequence[float]
    dp: int
    cap: int
    multiple_of: int

    def step(self, indices: Sequence[int]) -> Step:
        rounds = self._rounds(sorted(indices, key=lambda i: (-self.lengths[i], i)))
        return self._measured(self._ranks(rounds))

    def _rounds(self, longest_first: Sequence[int]) -> list[MicroBatches]:
        """Groups of `dp` micro-batches of like cost, the dearest group first."""
        tight = pack([self.lengths[i] for i in longest_first], self.cap)
        unit = self.dp * self.multiple_of
        count = unit * ceil(len(tight) / unit)
        bins = self._even(longest_first, count)
        if bins is None:
            bins = _filled([[longest_first[i] for i in members] for members in tight], count)
        bins.sort(key=self._total, reverse=True)
        return [bins[start : start + self.dp] for start in range(0, count, self.dp)]

    def _even(self, longest_first: Sequence[int], count: int) -> MicroBatches | None:
        """Each sample into the cheapest of `count` bins with room for it; None if one finds no room."""
        bins: MicroBatches = [[] for _ in range(count)]
        rooms = [self.cap] * count
        cheapest = [(0.0, number) for number in range(count)]
        for index in longest_first:
            length, full = self.lengths[index], []
            while cheapest and bins[cheapest[0][1]] and rooms[cheapest[0][1]] < length:
                full.append(heappop(cheapest))
            if not cheapest:
                return None
            total, number = heappop(cheapest)
            bins[number].append(index)
            rooms[number] -= length
            heappush(cheapest, (total + self.costs[index], number))
            for entry in full:
                heappush(cheapest, entry)
        return bins

    def _ranks(self, rounds: list[MicroBatches]) -> list[MicroBatches]:
        """Deal each round out: its dearest micro-batch to the rank that has least so far."""
        ranks: list[MicroBatches] = [[] for _ in range(self.dp)]
        totals = [0.0] * self.dp
        for group in rounds:
            waiting = sorted(range(self.dp), key=totals.__getitem__)
            for rank, members in zip(waiting, sorted(group, key=self._total, reverse=True), strict=True):
                ranks[rank].append(members)
                totals[rank] += self._total(members)
        return ranks

    def _measured(self, ranks: list[MicroBatches]) -> Step:
        costs = [[self._total(members) for members in rank] for rank in ranks]
        ideal = sum(map(sum, costs)) / self.dp or 1.0
        tokens = sum(self.lengths[i] for rank in ranks for members in rank for i in members)
        return Step(
            ranks=ranks,
            token_fill=tokens / (self.dp * len(ranks[0]) * self.cap),
            lockstep_over_ideal=sum(map(max, zip(*costs, strict=True))) / ideal,
            makespan_over_ideal=max(map(sum, costs)) / ideal,
        )

    def _total(self, members: Sequence[int]) -> float:
        return sum(self.costs[i] for i in members)


def _filled(bins: MicroBatches, count: int) -> MicroBatches:
    """`bins` with new ones up to `count`, each taking a sample from the bin that has most."""
    while len(bins) < count:
        richest = max(bins, key=len)
        bins.append([richest.pop()] if len(richest) > 1 else [])
    return bins


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split sample indices into micro-batches of at most `max_tokens` tokens each.

    Longest first, each into the fullest micro-batch that still has room (best-fit decreasing); ties go to
    the earlier sample, so that the result is a function of the lengths. A sample longer than the cap gets a
    micro-batch of its own and is never cut.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        slot = bisect_left(rooms, (lengths[index], -1))
        if slot < len(rooms):
            free, number = rooms.pop(slot)
        else:
            free, number = max_tokens, len(bins)
            bins.append([])
        bins[number].append(index)
        insort(rooms, (free - lengths[index], number))
    return bins
