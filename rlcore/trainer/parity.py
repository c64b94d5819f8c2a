"""Logits of the Megatron model against transformers' on the same weights: the proof that both are one model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlcore.bridge.load import load_hf
from rlcore.bridge.table import WeightBridge
from rlcore.config.schema import Parallel, Recompute
from rlcore.errors import fail
from rlcore.models.attention import PackedSequences
from rlcore.models.build import build_model, transformer_config
from rlcore.models.forward import forward_hidden, output_weight
from rlcore.models.spec import ModelSpec

# Packed into one micro-batch on our side, run one by one on the other.
LENGTHS = (5, 40, 3, 77, 20)

MOST_RELATIVE_DIFFERENCE = 3e-6
MOST_TIMES_NOISE = 2.0


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit, and that between transformers' fp32 and float64 runs; both are relative to
    the largest logit."""

    max_rel_logit_diff: float
    reference_noise: float
    tokens: int

    @property
    def limit(self) -> float:
        """The largest difference that rounding explains."""
        return min(MOST_RELATIVE_DIFFERENCE, MOST_TIMES_NOISE * self.reference_noise)

    @property
    def holds(self) -> bool:
        return self.max_rel_logit_diff <= self.limit


def measure_parity(spec: ModelSpec, bridge: WeightBridge, checkpoint: Path, seed: int = 0) -> Parity:
    """Compare both models in fp32 on random tokens. Needs process groups of one rank (`setup.initialize`).

    Raises RlcoreError where transformers cannot load the checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens_t = torch.randint(spec.vocab_size, (sum(LENGTHS),), generator=generator)
    with torch.no_grad():
        ours_tv = megatron_logits(spec, bridge, checkpoint, tokens_t, LENGTHS)
        reference_tv, exact_tv = _transformers_logits(spec, checkpoint, tokens_t)
    largest = exact_tv.abs().max()
    return Parity(
        max_rel_logit_diff=float((ours_tv - reference_tv).abs().max() / largest),
        reference_noise=float((exact_tv - reference_tv).abs().max() / largest),
        tokens=len(tokens_t),
    )


def megatron_logits(
    spec: ModelSpec, bridge: WeightBridge, checkpoint: Path, tokens_t: Tensor, lengths: tuple[int, ...]
) -> Tensor:
    """Build the model in fp32, load the checkpoint and run packed sequences of these lengths; [t, v]."""
    config = transformer_config(
        spec, parallel=Parallel(), dtype=torch.float32, recompute=Recompute(), megatron_overrides={}
    )
    (model,) = build_model(spec, config)
    load_hf([model], bridge, checkpoint)
    device = output_weight(model).device
    hidden_t1h = forward_hidden(model.eval(), tokens_t[None].to(device), PackedSequences.of(lengths, device))
    return (hidden_t1h[:, 0] @ output_weight(model).T).cpu()


def _transformers_logits(spec: ModelSpec, checkpoint: Path, tokens_t: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in fp32 and in float64."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="eager",
            # The other ways to multiply by experts know no float64.
            experts_implementation="eager",
            local_files_only=True,
        ).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise fail(str(checkpoint), f"transformers cannot load it: {error}") from error
    spec.mend_transformers(model)

    def logits_tv() -> Tensor:
        parts = [model(part_l[None], use_cache=False).logits[0] for part_l in tokens_t.split(LENGTHS)]
        return torch.cat(parts)

    single_tv = logits_tv()
    model.double()
    return single_tv, logits_tv()
