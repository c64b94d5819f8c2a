"""Samples kept beside the numbers: `rollouts/step-000012.jsonl`, `rollouts/eval-NAME-000012.jsonl`."""

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from rlcore.data.sample import Sample
from rlcore.telemetry.files import json_line, read_json_lines, write_text

TRAINING = "step"


def evaluation_kind(name: str) -> str:
    """The kind under which samples of evaluation set `name` are kept."""
    return f"eval-{name}"


def write_samples(
    rollouts: Path, kind: str, step: int, samples: Iterable[Sample], limit: int | None = None
) -> Path:
    """Keep the first `limit` samples of a step (all by default) in folder `rollouts`; returns the file."""
    lines = (json_line(sample.to_dict()) for sample in islice(samples, limit))
    return write_text(rollouts / f"{_file_name(kind)}-{step:06d}.jsonl", "".join(lines))


def read_samples(path: Path) -> list[Sample]:
    """The samples of one file."""
    return [Sample.from_dict(record) for record in read_json_lines(path)]


def sample_files(rollouts: Path, kind: str) -> dict[int, Path]:
    """The kept files of a kind by step, ascending."""
    pattern = re.compile(re.escape(_file_name(kind)) + r"-(\d+)\.jsonl")
    found = {
        int(match[1]): path for path in rollouts.glob("*.jsonl") if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def _file_name(kind: str) -> str:
    return re.sub(r"[^\w.-]+", "_", kind)
