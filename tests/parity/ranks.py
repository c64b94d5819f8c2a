"""What one rank of the parity suite does: each layout's gradient from the same weights and samples.

One process takes the reference gradients; later launches compare theirs with these.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from families import Family, Layout, Lengths
from gradients import Gradients, largest_difference, whole_gradients

from rlcore.algorithms.losses import ClipOptions, clip
from rlcore.bridge.inventory import megatron_tensors
from rlcore.bridge.safetensors_io import write_folder
from rlcore.config.schema import MTP, Algorithm, Model, Optimizer, Parallel, Recompute
from rlcore.data.train_sample import TrainSample
from rlcore.models.build import build_model, transformer_config
from rlcore.models.spec import ModelSpec
from rlcore.trainer.objectives import PolicyObjective
from rlcore.trainer.setup import initialize
from rlcore.trainer.trainer import Trainer

# Fewer tokens than the samples have: every layout takes several micro-batches.
MAX_TOKENS = 96
# Scores of the last one chosen and the first one left out differ by more than rounding ever could.
SMALLEST_MARGIN = 1e-5
SEED = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A layout's gradient, its norm and its loss against those of one process; `seconds` is wall time.

    `limit` is what rounding explains of each, `worst` the parameter furthest off; `error` says why there are no
    numbers.
    """

    family: str
    layout: str
    max_rel_grad_diff: float = float("inf")
    grad_norm_rel_diff: float = float("inf")
    loss_diff: float = float("inf")
    seconds: float = 0.0
    limit: float = 0.0
    worst: str = ""
    error: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The outcome as it is recorded; a layout that failed has no numbers."""
        numbers = ("max_rel_grad_diff", "grad_norm_rel_diff", "loss_diff", "seconds")
        values = {name: None if self.error else getattr(self, name) for name in numbers}
        return {"family": self.family, "layout": self.layout, **values}


@dataclass(frozen=True)
class Measured:
    """What backward passes leave, on rank 0."""

    gradients: Gradients
    norm: float
    loss: float


def take_reference(folder: Path, family: Family, lengths: Lengths) -> None:
    """In one process: make the family's checkpoint where there is none, and save the gradient of `lengths`."""
    layout = Layout("one process", lengths)
    initialize(Parallel(), SEED)
    checkpoint = checkpoint_of(folder, family)
    if not checkpoint.exists():
        write_random(checkpoint, family, layout)
    with ExitStack() as watching:
        margins = [watching.enter_context(watch()) for watch in family.margins]
        spec = replace(family.spec(layout), shares_prompts=False)
        measured = _measure(folder, family, layout, spec)
    smallest = min(chain([1.0], *margins))
    assert smallest > SMALLEST_MARGIN, f"{family.name}: a choice is a near-tie, {smallest:.0e}"
    torch.save(asdict(measured), _reference(folder, family, lengths))


def compare(folder: Path, family: Family, layout: Layout) -> Outcome | None:
    """On every rank of the layout: measure it; rank 0 says how it differs from the reference."""
    start = time.monotonic()
    initialize(layout.parallel, SEED)
    measured = _measure(folder, family, layout, family.spec(layout))
    if dist.get_rank():
        return None
    reference = Measured(**torch.load(_reference(folder, family, layout.lengths)))
    difference, worst = largest_difference(measured.gradients, reference.gradients)
    return Outcome(
        family=family.name,
        layout=layout.title,
        max_rel_grad_diff=difference,
        grad_norm_rel_diff=abs(measured.norm / reference.norm - 1),
        loss_diff=abs(measured.loss - reference.loss),
        seconds=round(time.monotonic() - start, 2),
        limit=family.limit,
        worst=worst,
    )


def checkpoint_of(folder: Path, family: Family) -> Path:
    return folder / family.name


def _reference(folder: Path, family: Family, lengths: Lengths) -> Path:
    return folder / f"{family.name} {sum(map(sum, lengths))} tokens.pt"


def _measure(folder: Path, family: Family, layout: Layout, spec: ModelSpec) -> Measured:
    checkpoint = checkpoint_of(folder, family)
    bridge = family.make_bridge(spec)
    trainer = Trainer(
        spec,
        bridge,
        checkpoint,
        model=Model(checkpoint=str(checkpoint), dtype="float32"),
        parallel=layout.parallel,
        mtp=MTP(num_layers=len(spec.mtp_layers), train=True),
        recompute=Recompute(granularity="full" if layout.recompute else "none"),
        megatron={"moe_token_dispatcher_type": layout.dispatcher},
        max_tokens_per_gpu=MAX_TOKENS,
    )
    trainer.prepare_optimizer(Optimizer(), total_steps=1)
    objective = PolicyObjective(clip.policy_loss(ClipOptions()), Algorithm(entropy_coefficient=0.01))
    metrics = trainer.backward(samples_of(layout.lengths, spec.vocab_size), objective)
    loss = metrics["loss"] + metrics.get("mtp/loss", 0.0)
    return Measured(whole_gradients(trainer.state.stages, bridge), metrics["grad_norm"], loss)


def samples_of(lengths: Lengths, vocab_size: int) -> list[TrainSample]:
    """Random samples. A prompt as long as the one before it is the same."""
    generator = torch.Generator().manual_seed(SEED)
    samples = [_sample(prompt, response, vocab_size, generator) for prompt, response in lengths]
    for before, after in pairwise(samples):
        if before.prompt_length == after.prompt_length:
            after.tokens[: after.prompt_length] = before.tokens[: before.prompt_length]
    return samples


def _sample(prompt: int, response: int, vocab_size: int, generator: torch.Generator) -> TrainSample:
    advantage = float(0.5 + torch.rand((), generator=generator))
    return TrainSample(
        name=f"{prompt} and {response} tokens",
        tokens=torch.randint(vocab_size, (prompt + response,), generator=generator).tolist(),
        prompt_length=prompt,
        loss_mask=(torch.rand(response, generator=generator) < 0.8).float().tolist(),
        advantages=[advantage] * response,
    )


def write_random(checkpoint: Path, family: Family, layout: Layout) -> None:
    """Write a checkpoint of random weights as the bridge names and shapes them."""
    spec = family.spec(layout)
    config = transformer_config(
        spec,
        parallel=Parallel(),
        dtype=torch.float32,
        recompute=Recompute(),
        megatron_overrides={},
        mtp_layers=len(spec.mtp_layers),
    )
    bridge = family.make_bridge(spec)
    generator = torch.Generator().manual_seed(family.seed)
    shapes = {
        hub_name: shape
        for name, tensor in megatron_tensors(build_model(spec, config, meta=True)).items()
        for entry in [bridge.by_megatron[name]]
        for hub_name, shape in zip(entry.hf, entry.transform.source_shapes(tuple(tensor.shape), 1), strict=True)
    }
    checkpoint.mkdir()
    tensors = ((name, _random(name, shape, generator)) for name, shape in shapes.items())
    write_folder(checkpoint, tensors, shard_bytes=2**30)


def _random(name: str, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Weights of a model that does not amplify rounding, as random ones of any size would.

    Small norms keep what a layer adds small beside the residual stream; biases are small, for what all keys and
    values have in common cancels in attention's gradient.
    """
    noise = torch.randn(shape, generator=generator)
    if "norm" in name:
        return 0.3 + 0.03 * noise
    if len(shape) == 1:
        return 0.02 * noise
    return noise if "embed" in name else noise / shape[1] ** 0.5
