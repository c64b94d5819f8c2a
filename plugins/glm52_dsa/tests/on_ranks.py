"""Compares engine and trainer in several layouts, and moves a checkpoint between two; prints JSON by name.

A program, because ranks are forks of a process that has Megatron imported and no process groups yet.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rlcore.trainer import compat

compat.install()
sys.path.insert(0, str(Path(__file__).parents[3] / "tests/parity"))

from conftest import CONFIG  # noqa: E402
from launch import run_tasks  # noqa: E402
from rlcore_glm52_dsa.bridge import dsa_bridge  # noqa: E402
from rlcore_glm52_dsa.spec import dsa_spec  # noqa: E402

from rlcore.config.schema import Model, Optimizer, Parallel, Recompute  # noqa: E402
from rlcore.data.train_sample import TrainSample  # noqa: E402
from rlcore.models.hf_config import read_hf_config  # noqa: E402
from rlcore.rollout.local import LocalEngine  # noqa: E402
from rlcore.testing.agreement import sample_responses  # noqa: E402
from rlcore.testing.tiny import tiny_checkpoint  # noqa: E402
from rlcore.trainer.objectives import SftObjective  # noqa: E402
from rlcore.trainer.setup import initialize  # noqa: E402
from rlcore.trainer.trainer import Trainer  # noqa: E402

LAYOUTS = {"TP2": Parallel(tp=2), "CP2": Parallel(cp=2), "PP2": Parallel(pp=2)}
FULL = ["full", "shared", "full", "full"]


def try_layout(checkpoint: Path, samples: Sequence[TrainSample], layout: str) -> dict[str, float]:
    return _trainer(checkpoint, LAYOUTS[layout]).train_step(samples, SftObjective())


def _trainer(checkpoint: Path, parallel: Parallel) -> Trainer:
    initialize(parallel, seed=0)
    spec = dsa_spec(read_hf_config(checkpoint))
    trainer = Trainer(
        spec,
        dsa_bridge(spec),
        checkpoint,
        model=Model(checkpoint=str(checkpoint), dtype="float32"),
        parallel=parallel,
        recompute=Recompute(granularity="full"),
        max_tokens_per_gpu=200,
    )
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=1)
    return trainer


def move_checkpoint(checkpoint: Path, samples: Sequence[TrainSample]) -> dict[str, bool]:
    """Train and save with two data-parallel ranks, and go on with two that share heads."""
    saved, exported = checkpoint.with_name("saved"), []
    for parallel in (Parallel(), Parallel(tp=2)):
        trainer = _trainer(checkpoint, parallel)
        if exported:
            trainer.load(saved)
        else:
            trainer.train_step(samples, SftObjective())
            trainer.save(saved)
        # Rank 0 alone is given tensors, and heard.
        exported.append({name: tensor.clone() for name, tensor in trainer.exporter if not tensor.is_meta})
    before, after = exported
    return {"equal": before.keys() == after.keys() and all(before[x].equal(after[x]) for x in before)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        tiny_checkpoint(checkpoint, CONFIG | {"indexer_types": FULL}, jitter=0.05)
        spec = dsa_spec(read_hf_config(checkpoint))
        engine = LocalEngine(checkpoint, mend=spec.mend_transformers, serve=spec.serve_transformers)
        samples = sample_responses(engine, vocab_size=spec.vocab_size)
        tasks = [partial(try_layout, checkpoint, samples, layout) for layout in LAYOUTS]
        tasks.append(partial(move_checkpoint, checkpoint, samples))
        print(json.dumps(dict(zip([*LAYOUTS, "moved"], run_tasks(tasks, world_size=2), strict=True))))


if __name__ == "__main__":
    main()
