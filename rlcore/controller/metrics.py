"""The numbers of a rollout and of an evaluation, computed from their samples."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from statistics import fmean, pstdev

from rlcore.data.sample import Sample, Status

# How far trainer and engine are apart; missing where no token can be compared.
_GAPS = ("logprob_gap/", "dsa/")


def rollout_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Rewards and their parts, response lengths and how many were cut short."""
    rewards = [sample.reward or 0.0 for sample in samples]
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for name, value in sample.reward_parts.items():
            parts[name].append(value)
    return {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/zero_std_groups": _share_without_spread(samples),
        "pass_rate": fmean(reward > 0 for reward in rewards),
        **{f"reward/{name}/mean": fmean(values) for name, values in sorted(parts.items())},
        **_lengths(samples),
        "tokens/generated": sum(len(sample.tokens) for sample in samples),
    }


def staleness_metrics(samples: Sequence[Sample], version: int) -> dict[str, float]:
    """By how many versions the weights that made a rollout's tokens are behind those that they train."""
    behind = [version - made for sample in samples for made in sample.versions]
    return {"rollout/staleness_mean": fmean(behind), "rollout/staleness_max": max(behind)} if behind else {}


def update_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of the optimizer steps on one rollout: means over those taken; `skipped` counts the others.

    How far trainer and engine are apart is that of the first: after it, they rightly differ.
    """
    taken = [row for row in rows if not row["skipped"]] or rows
    gaps = {name: value for name, value in rows[0].items() if name.startswith(_GAPS)}
    means = {name: fmean(row[name] for row in taken) for name in taken[0] if not name.startswith(_GAPS)}
    return {**means, **gaps, "skipped": fsum(row["skipped"] for row in rows)}


def evaluation_metrics(name: str, groups: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """pass@1 (mean over all responses), pass@k (any response of a problem right), and response lengths.

    A response is right if its reward is above 0. Those that no engine could make count as wrong; `failed` is
    their share.
    """
    passed = [[(sample.reward or 0.0) > 0 for sample in group] for group in groups]
    scores = {"pass@1": fmean(fmean(group) for group in passed)}
    if (k := len(groups[0])) > 1:
        scores[f"pass@{k}"] = fmean(any(group) for group in passed)
    samples = [sample for group in groups for sample in group]
    scores["reward"] = fmean(sample.reward or 0.0 for sample in samples)
    scores["failed"] = fmean(sample.status is Status.FAILED for sample in samples)
    scores.update(_lengths(samples))
    return {f"eval/{name}/{key.removeprefix('response/')}": value for key, value in scores.items()}


def by_group(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples of one prompt together, in order of first appearance."""
    groups: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    return list(groups.values())


def _lengths(samples: Sequence[Sample]) -> dict[str, float]:
    lengths = [len(sample.tokens) for sample in samples]
    return {
        "response/length_mean": fmean(lengths),
        "response/length_max": max(lengths),
        "response/truncated": fmean(sample.status is Status.TRUNCATED for sample in samples),
    }


def _share_without_spread(samples: Sequence[Sample]) -> float:
    """Share of groups whose rewards are all equal: they teach a group-relative estimator nothing."""
    return fmean(len({sample.reward for sample in group}) == 1 for group in by_group(samples))
