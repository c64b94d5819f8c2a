"""Parity of parallel layouts: `make parity` holds every layout's gradient against that of one process.

Prints one table, writes runs/parity.json, and exits with 1 where a layout is further off than rounding
explains, or where one that Megatron or gloo gets wrong is not refused. Arguments name layouts, by default all.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rlcore.trainer import compat

compat.install()

from families import FAMILIES, Family, Layout  # noqa: E402
from launch import RanksFailed, Task, run_tasks  # noqa: E402
from ranks import Outcome, compare, take_reference  # noqa: E402
from refusals import REFUSALS, Refusal  # noqa: E402

RESULTS = Path("runs/parity.json")

Case = tuple[Family, Layout]


def main(chosen: Sequence[str]) -> int:
    start = time.monotonic()
    print(f"{'family':<19}{'layout':<30}{'max Δg':>10}{'norm':>10}{'loss':>10}{'time':>9}")
    cases = [
        (family, layout)
        for family in FAMILIES
        for layout in family.layouts
        if not chosen or layout.title in chosen or layout.name in chosen
    ]
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [shown(outcome) for outcome in run_cases(cases, Path(folder))]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([outcome.row for outcome in outcomes], indent=2) + "\n")
    good = [holds(outcome) for outcome in outcomes]
    print("\nrefused before any process starts")
    refused = [is_refused(refusal) for refusal in REFUSALS]
    print(f"\n{sum(good)} of {len(good)} layouts hold, {sum(refused)} of {len(refused)} are refused;", end=" ")
    print(f"{time.monotonic() - start:.0f} s; {RESULTS}")
    return 0 if all(good) and all(refused) else 1


def run_cases(cases: Sequence[Case], folder: Path) -> Iterator[Outcome]:
    """Take the references in one process, then launch the layouts of each world size together."""
    needed = {
        (family.name, layout.lengths): partial(take_reference, folder, family, layout.lengths)
        for family, layout in cases
    }
    list(run_tasks(list(needed.values()), 1))
    by_world: dict[int, list[Case]] = defaultdict(list)
    for family, layout in cases:
        by_world[family.world_size(layout)].append((family, layout))
    for world_size in sorted(by_world):
        yield from run_world(by_world[world_size], world_size, folder)


def run_world(cases: Sequence[Case], world_size: int, folder: Path) -> Iterator[Outcome]:
    """Run layouts in one launch, and in another one what is left after one that fails."""
    tasks: list[Task] = [partial(compare, folder, family, layout) for family, layout in cases]
    done = 0
    while done < len(cases):
        try:
            for outcome in run_tasks(tasks[done:], world_size):
                yield outcome
                done += 1
        except RanksFailed as error:
            family, layout = cases[done]
            yield Outcome(family=family.name, layout=layout.title, error=str(error))
            done += 1


def differences(outcome: Outcome) -> tuple[float, float, float]:
    return outcome.max_rel_grad_diff, outcome.grad_norm_rel_diff, outcome.loss_diff


def holds(outcome: Outcome) -> bool:
    return not outcome.error and max(differences(outcome)) <= outcome.limit


def shown(outcome: Outcome) -> Outcome:
    """Print a row of the table, with what is wrong where it does not hold."""
    numbers = "".join(f"{difference:>10.1e}" for difference in differences(outcome))
    remark = "" if holds(outcome) else f"  {outcome.error or outcome.worst}"
    print(f"{outcome.family:<19}{outcome.layout:<30}{numbers}{outcome.seconds:>7.2f} s{remark}", flush=True)
    return outcome


def is_refused(refusal: Refusal) -> bool:
    """Print why a layout is refused, if it is."""
    reasons = refusal.reasons()
    print(f"{refusal.layout:<30}{'; '.join(reasons) or 'IS NOT REFUSED'}")
    return bool(reasons)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
