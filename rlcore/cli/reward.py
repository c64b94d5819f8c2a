"""Try a reward on a file of samples, one JSON object per line, and see what each is worth.

  {"prompt": "2 + 3 = ?", "response": "It is \\\\boxed{5}.", "label": "5", "metadata": {}}

Only `response` must be there; a run's rollouts can be read as they are. A reward is a function in an
installed package, found by its entry point:

  from rlcore.plugin import RewardResult, Sample, reward

  @reward
  def short(sample: Sample) -> RewardResult:
      correct = sample.label in sample.response
      return RewardResult(float(correct), {"length": len(sample.response)})

  [project.entry-points."rlcore.rewards"]     # in its pyproject.toml
  short = "my_package:short"

It runs as in training, in a process of its own that is killed at the time-out. The exit code is 1 if any
sample could not be scored.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rlcore.cli.output import table
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from rlcore.data.sample import Sample
    from rlcore.rollout.rewards import RewardOutcome

KEYS = ("prompt", "response", "label", "metadata")
Record = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the reward, as a recipe names it (or DIST:NAME)")
    parser.add_argument("samples", metavar="SAMPLES.jsonl", type=Path, help="one sample per line")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="an option of the reward; may be repeated"
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds that one sample may take (30)")
    parser.add_argument(
        "--json", action="store_true", help="print {index, reward, parts, seconds, error} per line"
    )


def run(args: argparse.Namespace) -> int:
    samples = read_samples(args.samples)
    outcomes = asyncio.run(_score(args.name, _options(args.set), args.timeout, samples))
    records = [_record(index, outcome) for index, outcome in enumerate(outcomes)]
    if args.json:
        print("\n".join(map(json.dumps, records)))
    else:
        print(table(("INDEX", "REWARD", "PARTS", "SECONDS", "ERROR"), map(_cells, records)))
        print(f"\n{_summary(records)}")
    return int(any(record["error"] for record in records))


def read_samples(path: Path) -> "list[Sample]":
    """Read samples, each a group of its own. Raises RlcoreError with every bad line."""
    from pydantic import TypeAdapter

    from rlcore.data.datasets import first_problems
    from rlcore.data.sample import Sample

    if not path.is_file():
        raise fail(str(path), "no such file", "a file with one JSON object per line")
    schema = TypeAdapter(Sample)
    samples: list[Sample] = []
    problems: list[Problem] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            samples += [_parse(line, schema, f"{path}:{number}", len(samples))] if line.strip() else []
        except RlcoreError as error:
            problems += error.problems
    raise_if_any(first_problems(problems))
    if not samples:
        raise fail(str(path), "there are no samples in it", '{"prompt": …, "response": …, "label": …}')
    return samples


def _parse(line: str, schema: "TypeAdapter[Sample]", place: str, number: int) -> "Sample":
    """The sample of a line, as group `number`; raises RlcoreError with all that is wrong with it."""
    from pydantic import ValidationError

    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise fail(place, f"not JSON: {error.msg} at column {error.colno}", "one object per line") from None
    if not isinstance(raw, dict):
        raise fail(place, f"{line.strip()[:40]!r} is no JSON object", '{"response": …, "label": …}')
    if "response" not in raw:
        raise fail(place, f"no key 'response', only: {', '.join(raw) or 'none'}", '{"response": …, "label": …}')
    known = {"prompt": ""} | {key: raw[key] for key in KEYS if key in raw}
    if isinstance(known.get("label"), int | float):
        known["label"] = str(known["label"])
    try:
        return schema.validate_python({**known, "group": number})
    except ValidationError as error:
        wrong = {str(found["loc"][0]): found for found in error.errors(include_url=False)}
        raise RlcoreError(
            Problem(place, f"{key}: {found['msg']}, not {found['input']!r}") for key, found in wrong.items()
        ) from None


def _options(settings: Sequence[str]) -> Record:
    """Options from `--set K=V`, whose values are YAML as in a recipe."""
    from rlcore.config.load import overridden
    from rlcore.config.tree import Node

    options: Record = reduce(overridden, settings, Node({}, "--set")).plain()
    return options


async def _score(
    name: str, options: Record, timeout: float, samples: "Sequence[Sample]"
) -> "list[RewardOutcome]":
    from rlcore.config.section import UseReward
    from rlcore.registry import Catalog
    from rlcore.rollout.rewards import RewardRunner, SelectedReward

    use = UseReward(use=name, options=options, timeout=timeout, on_error="zero")
    runner = RewardRunner([SelectedReward.load(use, Catalog.installed(), name)])
    try:
        return await runner.score(samples)
    finally:
        await runner.close()


def _record(index: int, outcome: "RewardOutcome") -> Record:
    """The line of a sample; a reward's own value is no part of itself."""
    return {
        "index": index,
        "reward": None if outcome.error else outcome.value,
        "parts": {key.partition("/")[2]: value for key, value in outcome.parts.items() if "/" in key},
        "seconds": round(outcome.seconds, 6),
        "error": outcome.error,
    }


def _cells(record: Record) -> tuple[str, ...]:
    parts = " ".join(f"{name}={value:g}" for name, value in record["parts"].items())
    reward = "-" if record["error"] else f"{record['reward']:g}"
    return str(record["index"]), reward, parts or "-", f"{record['seconds']:.4f}", record["error"] or "-"


def _summary(records: Sequence[Record]) -> str:
    """Counts, mean and range in a line."""
    rewards = [record["reward"] for record in records if record["error"] is None]
    errors = sum(record["error"] is not None for record in records)
    spread = (
        f", reward mean {fmean(rewards):g}, least {min(rewards):g}, most {max(rewards):g}" if rewards else ""
    )
    return f"{len(rewards) + errors} samples, {errors} with an error{spread}"
