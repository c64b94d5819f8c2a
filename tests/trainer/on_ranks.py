"""Trains the tiny model of these tests in several layouts and prints what every rank got, as JSON by layout.

A program, because ranks are forks of a process that has Megatron imported and no process groups yet.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlcore.trainer import compat

compat.install()
sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import torch  # noqa: E402
from late_sends import late_sends  # noqa: E402
from launch import run_tasks  # noqa: E402
from rlcore_glm45.plugin import glm45_bridge, glm45_spec  # noqa: E402

from rlcore.algorithms.losses import ClipOptions, clip  # noqa: E402
from rlcore.config.schema import MTP, Algorithm, BadSteps, Model, Optimizer, Parallel  # noqa: E402
from rlcore.data.train_sample import TrainSample  # noqa: E402
from rlcore.errors import RlcoreError  # noqa: E402
from rlcore.ranks import from_all_ranks  # noqa: E402
from rlcore.testing.tiny import tiny_checkpoint, tiny_mtp_layer  # noqa: E402
from rlcore.trainer.objectives import PolicyObjective  # noqa: E402
from rlcore.trainer.setup import initialize  # noqa: E402
from rlcore.trainer.trainer import Trainer  # noqa: E402

CONFIG = {
    "model_type": "glm4_moe",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "use_qk_norm": True,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
LENGTHS = [(5, 9), (3, 17), (8, 4), (2, 30), (6, 13)]
# Every layout has each of these in a micro-batch of its own, most with padding, and DP2 a filler too.
LONG = [(8, 35), (4, 39), (5, 37)]
ROUTERS = {
    "moe_router_load_balancing_type": "aux_loss",
    "moe_aux_loss_coeff": 0.1,
    "moe_z_loss_coeff": 0.1,
}
OBJECTIVE = PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm(entropy_coefficient=0.01))

LAYOUTS = {
    "one process": Parallel(),
    "DP2": Parallel(),
    "TP2": Parallel(tp=2),
    "CP2": Parallel(cp=2),
    "PP2": Parallel(pp=2),
    "PP2xVPP2": Parallel(pp=2, vpp=2),
    "late sends": Parallel(pp=2, vpp=2),
    "stages of 1 and 3 layers": Parallel(pp=2, first_stage_layers=1),
    "a free-form layout": Parallel(pp=2, pipeline_layout="E|tt|tt|mL"),
    "PP3": Parallel(pp=3, pipeline_layout="E|tttt|mL"),
}


def samples(lengths: Sequence[tuple[int, int]] = LENGTHS) -> list[TrainSample]:
    generator = torch.Generator().manual_seed(0)
    return [
        TrainSample(
            name=f"sample {number}",
            tokens=torch.randint(1, CONFIG["vocab_size"], (prompt + response,), generator=generator).tolist(),
            prompt_length=prompt,
            loss_mask=[1.0] * response,
            advantages=torch.randn(1, generator=generator).expand(response).tolist(),
            old_log_probs=[-5.0] * response,
        )
        for number, (prompt, response) in enumerate(lengths)
    ]


def poisoned() -> list[TrainSample]:
    """The first sample, or whatever rank has it, is at fault."""
    first, *others = samples()
    return [replace(first, advantages=[float("nan")] * first.response_length), *others]


def trainer_of(checkpoint: Path, layout: str, megatron: Mapping[str, Any] | None = None) -> Trainer:
    spec = glm45_spec(CONFIG)
    trainer = Trainer(
        spec,
        glm45_bridge(spec),
        checkpoint,
        model=Model(checkpoint=str(checkpoint), dtype="float32"),
        parallel=LAYOUTS[layout],
        mtp=MTP(num_layers=1, train=True),
        megatron=megatron,
        max_tokens_per_gpu=40,
        bad_steps=BadSteps(max_in_a_row=1),
    )
    trainer.prepare_optimizer(Optimizer(lr=1e-3), total_steps=9)
    return trainer


def try_layout(checkpoint: Path, layout: str) -> list[dict[str, Any]]:
    """What each rank gets: log-probs, two steps, a step with a single sample, and steps with a bad sample."""
    initialize(LAYOUTS[layout], seed=0)
    with late_sends() if layout == "late sends" else nullcontext():
        return from_all_ranks(results_of(checkpoint, layout))


def results_of(checkpoint: Path, layout: str) -> dict[str, Any]:
    trainer = trainer_of(checkpoint, layout)
    return {
        "log_probs": plain(trainer.log_probs(samples())),
        "steps": [trainer.train_step(samples(), OBJECTIVE) for _ in range(2)],
        "left out": trainer.train_step(poisoned(), OBJECTIVE)["skipped"],
        "refused": message(lambda: trainer.train_step(poisoned(), OBJECTIVE)),
        "one sample": trainer.train_step(samples()[:1], OBJECTIVE),
        "reference": plain(trainer.reference_log_probs(samples())),
        "losses of routers": trainer_of(checkpoint, layout, ROUTERS).train_step(samples(LONG), OBJECTIVE),
    }


def plain(by_index: Mapping[int, torch.Tensor]) -> dict[int, list[float]]:
    return {index: log_probs_t.tolist() for index, log_probs_t in by_index.items()}


def message(act: Callable[[], Any]) -> str:
    try:
        act()
    except RlcoreError as error:
        return str(error)
    return ""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "tiny"
        tiny_checkpoint(checkpoint, CONFIG, jitter=0.05)
        tiny_mtp_layer(checkpoint, jitter=0.05)
        one, *two, three = LAYOUTS
        results = {}
        for world_size, layouts in ((1, [one]), (2, two), (3, [three])):
            tasks = [partial(try_layout, checkpoint, layout) for layout in layouts]
            results |= zip(layouts, run_tasks(tasks, world_size), strict=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
