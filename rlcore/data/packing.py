"""Lays samples out for the trainer: into steps, ranks and micro-batches under a token cap.

Ranks wait for one another at every micro-batch: a step takes the sum, over its rounds, of the round's dearest
micro-batch. A round therefore holds micro-batches of like cost. Lengths and costs alone decide; tensors are
made elsewhere.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil

# Micro-batches of one round that differ by less than this share of the dearest are equal enough.
LEVEL = 1e-3


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step: `ranks[r][m]` are the indices of the samples in micro-batch m of DP rank r.

    All ranks have equally many micro-batches, the dearest round first; one is empty only for want of samples.
    `token_fill` is tokens / (micro-batches x cap). `lockstep_over_ideal` is the sum over m of the dearest
    micro-batch m, `makespan_over_ideal` the dearest rank's total, both over the mean total of a rank.
    """

    ranks: list[list[list[int]]]
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
    longer sample alone, never cut. `cost(length)` > 0 is one sample's cost in any unit, such as FLOPs; it is
    asked once per length. Each rank gets the same number of micro-batches, the least multiple of `multiple_of`
    that best-fit decreasing needs. Equal arguments give equal schedules, and only lengths break ties between
    samples of a step: their order moves samples of equal length alone.
    """
    price = {length: cost(length) for length in set(lengths)}
    samples = [_Sample(index, length, price[length]) for index, length in enumerate(lengths)]
    cap, steps = max_tokens_per_gpu * cp, []
    for start in range(0, len(samples), global_batch_size):
        longest_first = sorted(samples[start : start + global_batch_size], key=lambda s: -s.length)
        steps.append(_measured(_ranks(_rounds(longest_first, dp, cap, multiple_of)), cap))
    return Schedule(steps)


@dataclass(frozen=True, slots=True)
class _Sample:
    index: int
    length: int
    cost: float


@dataclass(slots=True)
class _Bin:
    """A micro-batch in the making; `room` is what the cap leaves, negative around a longer sample."""

    room: int
    cost: float = 0.0
    samples: list[_Sample] = field(default_factory=list)

    def add(self, sample: _Sample) -> None:
        self.samples.append(sample)
        self.room -= sample.length
        self.cost += sample.cost

    def take(self, sample: _Sample) -> _Sample:
        self.samples.remove(sample)
        self.room += sample.length
        self.cost -= sample.cost
        return sample


def _rounds(longest_first: list[_Sample], dp: int, cap: int, multiple_of: int) -> list[list[_Bin]]:
    """Groups of `dp` bins of like cost that run side by side, the dearest group first."""
    fewest = _fewest(longest_first, cap)
    rounds = multiple_of * ceil(len(fewest) / (dp * multiple_of))
    spare = [_Bin(cap) for _ in range(dp * rounds - len(fewest))]
    bins = _even(longest_first, _targets(longest_first, dp, rounds), cap) or fewest + spare
    _fill_empty(bins)
    bins.sort(key=lambda b: -b.cost)
    groups = [bins[start : start + dp] for start in range(0, len(bins), dp)]
    for group in groups:
        _level(group)
    return groups


def _fewest(longest_first: list[_Sample], cap: int) -> list[_Bin]:
    """Best-fit decreasing: each sample into the fullest bin that still has room, else into a new one."""
    bins: list[_Bin] = []
    rooms: list[tuple[int, int]] = []  # (room, bin), sorted
    for sample in longest_first:
        place = bisect_left(rooms, (sample.length, -1))
        if place == len(rooms):
            rooms.append((cap, len(bins)))
            bins.append(_Bin(cap))
        _, number = rooms.pop(place)
        bins[number].add(sample)
        insort(rooms, (bins[number].room, number))
    return bins


def _targets(longest_first: list[_Sample], dp: int, rounds: int) -> list[float]:
    """What each bin should cost: an equal share of what is left, or more where a round's dearest sample does.

    In a round that one long sample makes dear, the other ranks have time to spare: their bins take more, so
    that those of later rounds can take less.
    """
    left = sum(sample.cost for sample in longest_first) / dp
    targets: list[float] = []
    for number in range(rounds):
        head = longest_first[number * dp].cost if number * dp < len(longest_first) else 0.0
        targets.append(max(head, left / (rounds - number)))
        left = max(0.0, left - targets[-1])
    return [target for target in targets for _ in range(dp)]


def _even(longest_first: list[_Sample], targets: list[float], cap: int) -> list[_Bin] | None:
    """Each sample into the bin that lacks most of its target and has room; None if one finds no room."""
    bins = [_Bin(cap) for _ in targets]
    ready = [(-target, number) for number, target in enumerate(targets)]  # (cost - target, bin)
    heapify(ready)
    parked: list[tuple[int, tuple[float, int]]] = []  # (-room, entry), too full for samples as long as this one
    for sample in longest_first:
        while parked and -parked[0][0] >= sample.length:
            heappush(ready, heappop(parked)[1])
        while ready and (lacking := bins[ready[0][1]]).samples and lacking.room < sample.length:
            heappush(parked, (-lacking.room, heappop(ready)))
        if not ready:
            return None
        excess, number = ready[0]
        bins[number].add(sample)
        heapreplace(ready, (excess + sample.cost, number))
    return bins


def _fill_empty(bins: list[_Bin]) -> None:
    """Give each empty bin the shortest sample of the bin that has most, as far as samples reach."""
    for empty in [b for b in bins if not b.samples]:
        richest = max(bins, key=lambda b: len(b.samples))
        if len(richest.samples) > 1:
            empty.add(richest.take(richest.samples[-1]))


def _level(group: list[_Bin]) -> None:
    """Exchange samples between the dearest bin of a round and cheaper ones until none makes it cheaper."""
    for _ in range(4 * len(group)):  # bounds the time: late exchanges gain next to nothing
        *cheaper, dearest = sorted(group, key=lambda b: b.cost)
        if not any(_exchange(dearest, other) for other in cheaper):
            return


def _exchange(dear: _Bin, cheap: _Bin) -> bool:
    """Swap two samples, or move one, such that the costs of two bins come closest; False if none helps."""
    half_gap = (dear.cost - cheap.cost) / 2
    if 2 * half_gap <= LEVEL * dear.cost:
        return False
    nothing = _Sample(-1, 0, 0.0)
    ladder = sorted([nothing, *cheap.samples], key=lambda s: s.cost)
    costs = [sample.cost for sample in ladder]
    best, pair = half_gap, None
    for sample in dear.samples:
        wanted = sample.cost - half_gap
        place = bisect_left(costs, wanted)
        for back in ladder[max(place - 1, 0) : place + 1]:
            error = abs(back.cost - wanted)
            if error < best and -dear.room <= sample.length - back.length <= cheap.room:
                best, pair = error, (sample, back)
    if pair is None:
        return False
    out, back = pair
    cheap.add(dear.take(out))
    if back is not nothing:
        dear.add(cheap.take(back))
    return True


def _ranks(groups: list[list[_Bin]]) -> list[list[_Bin]]:
    """Deal each round out: its dearest bin to the rank that has least so far."""
    ranks: list[list[_Bin]] = [[] for _ in groups[0]]
    totals = [0.0] * len(ranks)
    for group in groups:
        least_first = sorted(range(len(ranks)), key=totals.__getitem__)
        for rank, dearest in zip(least_first, sorted(group, key=lambda b: -b.cost), strict=True):
            ranks[rank].append(dearest)
            totals[rank] += dearest.cost
    return ranks


def _measured(ranks: list[list[_Bin]], cap: int) -> Step:
    costs = [[sum(sample.cost for sample in b.samples) for b in rank] for rank in ranks]
    ideal = sum(map(sum, costs)) / len(ranks)
    tokens = sum(sample.length for rank in ranks for b in rank for sample in b.samples)
    return Step(
        ranks=[[[sample.index for sample in b.samples] for b in rank] for rank in ranks],
        token_fill=tokens / (len(ranks) * len(ranks[0]) * cap),
        lockstep_over_ideal=sum(map(max, zip(*costs, strict=True))) / ideal,
        makespan_over_ideal=max(map(sum, costs)) / ideal,
    )
