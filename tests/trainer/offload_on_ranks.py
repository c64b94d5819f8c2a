"""Trains on two ranks with and without memory that leaves in between; prints what differed, as JSON by case.

A program, because ranks are forks of a process that has Megatron imported and no process groups yet.
"""

import filecmp
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rlcore.trainer import compat

compat.install()
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "parity")]

from launch import run_tasks  # noqa: E402
from on_ranks import CONFIG, OBJECTIVE, samples  # noqa: E402
from rlcore_glm45.plugin import glm45_bridge, glm45_spec  # noqa: E402

from rlcore.config.schema import MTP, Model, Optimizer, Parallel  # noqa: E402
from rlcore.ranks import from_all_ranks  # noqa: E402
from rlcore.testing.tiny import tiny_checkpoint, tiny_mtp_layer  # noqa: E402
from rlcore.trainer import offload  # noqa: E402
from rlcore.trainer.offload import OffloadedTrainer  # noqa: E402
from rlcore.trainer.setup import initialize  # noqa: E402
from rlcore.trainer.trainer import Trainer  # noqa: E402

DENSE = {**CONFIG, "first_k_dense_replace": CONFIG["num_hidden_layers"], "num_nextn_predict_layers": 0}
FROZEN, TRAINED = MTP(num_layers=1), MTP(num_layers=1, train=True)
# Experts that are spread over ranks have buffers of their own; DDP's buckets are small enough to be several.
SMALL = {"bucket_size": 20_000, "overlap_grad_reduce": True}
CASES = {
    "dense TP2 bf16": (DENSE, Parallel(tp=2), "bfloat16", MTP(), {}),
    "dense DP2 fp32": (DENSE, Parallel(), "float32", MTP(), SMALL),
    "experts EP2 bf16, MTP frozen": (CONFIG, Parallel(ep=2), "bfloat16", FROZEN, {}),
    "experts EP2 fp32, MTP trained": (CONFIG, Parallel(ep=2), "float32", TRAINED, SMALL),
    "experts TP2 fp32": (CONFIG, Parallel(tp=2), "float32", MTP(), {}),
    "experts PP2 bf16": (CONFIG, Parallel(pp=2), "bfloat16", TRAINED, {}),
}


def trainer_of(folder: Path, case: str) -> Trainer:
    config, parallel, dtype, mtp, megatron = CASES[case]
    spec, checkpoint = glm45_spec(config), folder / ("dense" if config is DENSE else "experts")
    trainer = Trainer(
        spec,
        glm45_bridge(spec),
        checkpoint,
        model=Model(checkpoint=str(checkpoint), dtype=dtype),
        parallel=parallel,
        mtp=mtp,
        megatron=megatron,
        max_tokens_per_gpu=40,
    )
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=9)
    return trainer


def differences(folder: Path, case: str) -> list[str]:
    """What is not the same on any rank, bit for bit; and what a rank holds while all of it is away."""
    initialize(CASES[case][1], seed=0)
    usual, parked = trainer_of(folder, case), OffloadedTrainer(trainer_of(folder, case))
    found = []
    for step in range(2):
        parked.release("states", "gradients")
        sent = [dict(one.exporter) for one in (parked, usual)]
        found += [f"{step}: {name}" for name in sent[1] if not same(sent[0][name], sent[1][name])]
        parked.release()
        found += [f"{step}: {size} bytes held" for size in held(parked) if size]
        scores = [one.log_probs(samples()) for one in (parked, usual)]
        found += [f"{step}: score {i}" for i in scores[1] if not same(scores[0][i], scores[1][i])]
        steps = [one.train_step(samples(), OBJECTIVE) for one in (parked, usual)]
        found += [f"{step}: {name}" for name in steps[1] if steps[0][name] != steps[1][name]]
    parked.release()
    for name, one in {"parked": parked, "usual": usual}.items():
        one.save(folder / case / name)
    parked.release()
    parked.load(folder / case / "parked")
    last = [one.train_step(samples(), OBJECTIVE) for one in (parked, usual)]
    found += [f"resumed: {name}" for name in last[1] if last[0][name] != last[1][name]]
    files = [file.name for file in (folder / case / "usual").iterdir() if file.name != ".metadata"]
    _, other, missing = filecmp.cmpfiles(
        folder / case / "usual", folder / case / "parked", files, shallow=False
    )
    return [*(one for rank in from_all_ranks(found) for one in rank), *other, *missing]


def same(ours: Any, theirs: Any) -> bool:
    return ours.is_meta or ours.equal(theirs)


def held(trainer: OffloadedTrainer) -> list[int]:
    """Bytes of every storage that this rank's model, gradients and optimizer are in."""
    state = trainer.state
    tensors = [one for stage in trainer.stages for one in (*stage.parameters(), *stage.buffers())]
    buffers = [buffer for stage in state.stages for buffer in (*stage.buffers, *stage.expert_parallel_buffers)]
    tensors += [one for buffer in buffers for one in (buffer.param_data, buffer.grad_data)]
    for part in state.optimizer.chained_optimizers:
        tensors += [main for group in part.optimizer.param_groups for main in group["params"]]
        tensors += [one for states in part.optimizer.state.values() for one in states.values()]
    return [one.untyped_storage().size() for one in tensors if hasattr(one, "untyped_storage")]


def main() -> None:
    offload.BLOCK_BYTES = 1 << 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, config in {"dense": DENSE, "experts": CONFIG}.items():
            tiny_checkpoint(folder / kind, config, jitter=0.05)
        tiny_mtp_layer(folder / "experts", jitter=0.05)
        tasks = [partial(differences, folder, case) for case in CASES]
        print(json.dumps(dict(zip(CASES, run_tasks(tasks, world_size=2), strict=True))))


if __name__ == "__main__":
    main()
