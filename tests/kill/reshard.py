"""A checkpoint of any layout goes on in any other: weights, optimizer, schedule.

`python tests/kill/reshard.py [LAYOUT…] [--family FAMILY…]` prints a row per family, layout that saved and
layout that went on, and exits with 1 if a loss differs by more than rounding, or if a state that comes back to
the layout where it began does not go on bit for bit as if it had never left. What does not hold comes again at
the end, with its figures.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from rlcore.trainer import compat

compat.install()
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import ranks  # noqa: E402
from families import FAMILIES, Family, Layout  # noqa: E402
from launch import Task, run_tasks  # noqa: E402

from rlcore.algorithms.losses import ClipOptions, clip  # noqa: E402
from rlcore.config.schema import MTP, Algorithm, Model, Optimizer  # noqa: E402
from rlcore.trainer.objectives import PolicyObjective  # noqa: E402
from rlcore.trainer.setup import initialize  # noqa: E402
from rlcore.trainer.trainer import Trainer  # noqa: E402

Key = TypeVar("Key", bound=Hashable)
Pair = tuple[Layout, Layout]

SEED = 1
# Adam divides by what may be nearly zero, so that rounding in a gradient grows in the weights.
LIMIT = 2e-5
OBJECTIVE = PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm())

DENSE = ("DP1", "TP2", "PP2", "DP2", "CP2", "PP2xVPP2", "TP2xPP2")
EXPERTS = ("DP1", "PP2", "EP2", "TP2xETP2", "TP2xEP2")
PUBLISHED = ("DP1", "PP2xVPP2", "CP2xEP2", "TP2xPP2xEP2")
CHOSEN = {"GLM-4": DENSE, "Megatron MoE": EXPERTS, "GLM-4.5": PUBLISHED, "GLM-4.7-Flash": PUBLISHED}


def trainer_of(folder: Path, family: Family, layout: Layout, state: Path | None = None) -> Trainer:
    """A trainer in this layout, from the family's weights or from a saved state."""
    initialize(layout.parallel, SEED)
    spec, checkpoint = family.spec(layout), ranks.checkpoint_of(folder, family)
    trainer = Trainer(
        spec,
        family.make_bridge(spec),
        checkpoint,
        model=Model(checkpoint=str(checkpoint), dtype="float32"),
        parallel=layout.parallel,
        mtp=MTP(num_layers=len(spec.mtp_layers), train=True),
        max_tokens_per_gpu=96,
        seed=SEED,
    )
    trainer.prepare_optimizer(Optimizer(lr=1e-3, warmup_steps=1, schedule="linear"), total_steps=8)
    if state:
        trainer.load(state)
    return trainer


def steps(trainer: Trainer, family: Family, layout: Layout, count: int) -> list[float]:
    """Losses and gradient norms of the next steps."""
    vocab_size = family.spec(layout).vocab_size
    rows = [trainer.train_step(ranks.samples_of(layout.lengths, vocab_size), OBJECTIVE) for _ in range(count)]
    return [row[name] for row in rows for name in ("loss", "mtp/loss", "grad_norm") if name in row]


def write_weights(folder: Path, family: Family) -> None:
    layout = Layout("DP1")
    initialize(layout.parallel, SEED)
    ranks.write_random(ranks.checkpoint_of(folder, family), family, layout)


def begin(folder: Path, family: Family, layout: Layout) -> list[float]:
    """Train, save, and go on: what all others are held against."""
    trainer = trainer_of(folder, family, layout)
    steps(trainer, family, layout, 2)
    trainer.save(saved(folder, family, layout))
    return steps(trainer, family, layout, 2)


def go_on(folder: Path, family: Family, before: Layout, after: Layout) -> list[float]:
    """Take a state of another layout, save it as it came, and go on from it."""
    trainer = trainer_of(folder, family, after, saved(folder, family, before))
    trainer.save(saved(folder, family, before, after))
    return steps(trainer, family, after, 2)


def come_back(folder: Path, family: Family, before: Layout, after: Layout) -> list[float]:
    """Go on in the layout of the beginning with what another one has read and written."""
    trainer = trainer_of(folder, family, before, saved(folder, family, before, after))
    return steps(trainer, family, before, 2)


def saved(folder: Path, family: Family, *layouts: Layout) -> Path:
    return folder / " ".join([family.name, *(layout.name for layout in layouts)])


def on_their_ranks(family: Family, tasks: Mapping[Key, tuple[Layout, Task]]) -> dict[Key, list[float]]:
    """Run every task on the ranks of its layout; those of one world size share a launch."""
    by_world: dict[int, list[Key]] = defaultdict(list)
    for key, (layout, _) in tasks.items():
        by_world[family.world_size(layout)].append(key)
    found: dict[Key, list[float]] = {}
    for world_size, keys in sorted(by_world.items()):
        found |= zip(keys, run_tasks([tasks[key][1] for key in keys], world_size), strict=True)
    return found


def try_family(folder: Path, family: Family, layouts: Sequence[Layout]) -> list[str]:
    """Print a row of each pair; return what does not hold."""
    pairs = [(before, after) for before in layouts for after in layouts if before is not after]
    list(run_tasks([partial(write_weights, folder, family)], world_size=1))
    whole = on_their_ranks(family, {one: (one, partial(begin, folder, family, one)) for one in layouts})
    moved = on_their_ranks(family, {(a, b): (b, partial(go_on, folder, family, a, b)) for a, b in pairs})
    home = on_their_ranks(family, {(a, b): (a, partial(come_back, folder, family, a, b)) for a, b in pairs})
    wrong = [print_row(family, pair, whole[pair[0]], moved[pair], home[pair]) for pair in pairs]
    return list(filter(None, wrong))


def print_row(family: Family, pair: Pair, whole: list[float], moved: list[float], home: list[float]) -> str:
    """Return the row and its figures if it does not hold."""
    difference = max(abs(ours / theirs - 1) for ours, theirs in zip(moved, whole, strict=True))
    same = home == whole
    names = " -> ".join(layout.name for layout in pair)
    row = f"{family.name:<14}{names:<24}{difference:>9.1e}  back {'bit for bit' if same else 'another'}"
    print(row, flush=True)
    holds = difference <= LIMIT and same
    return "" if holds else f"{row}\n    stayed {whole}\n    moved  {moved}\n    back   {home}"


def main(families: Sequence[str], layouts: Sequence[str]) -> int:
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for family in (family for family in FAMILIES if family.name in families):
            chosen = [Layout(name) for name in CHOSEN[family.name] if name in layouts]
            if len(chosen) > 1:
                wrong += try_family(Path(folder), family, chosen)
    print(f"pairs that do not hold: {len(wrong)}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    every = sorted({*DENSE, *EXPERTS, *PUBLISHED})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layouts", nargs="*", metavar="LAYOUT", help=f"of {', '.join(every)}; without: all")
    parser.add_argument("--family", nargs="+", choices=CHOSEN, default=CHOSEN, help="without: all")
    chosen = parser.parse_args()
    sys.exit(main(chosen.family, chosen.layouts or every))
