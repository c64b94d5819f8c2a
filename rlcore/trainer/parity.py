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
from rlcore.trainer.choices import before_first_difference, joined, recorded_choices

# Packed into one micro-batch on our side, run one by one on the other.
LENGTHS = (5, 40, 3, 77, 20)

MOST_RELATIVE_DIFFERENCE = 3e-6
MOST_TIMES_NOISE = 2.0


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit, and that between transformers' fp32 and float64 runs; both are relative to
    the largest logit.

    They are about `tokens`; `left_out` are those that follow a choice of experts on which the runs differ.
    """

    max_rel_logit_diff: float
    reference_noise: float
    tokens: int
    left_out: int = 0

    @property
    def limit(self) -> float:
        """The largest difference that rounding explains."""
        return min(MOST_RELATIVE_DIFFERENCE, MOST_TIMES_NOISE * self.reference_noise)

    @property
    def holds(self) -> bool:
        return self.max_rel_logit_diff <= self.limit and self.tokens > self.left_out


@dataclass(frozen=True)
class Run:
    """What a model made of the tokens: logits, and the experts it chose in all layers."""

    logits_tv: Tensor
    choices_tk: Tensor


def measure_parity(spec: ModelSpec, bridge: WeightBridge, checkpoint: Path, seed: int = 0) -> Parity:
    """Compare both models in fp32 on random tokens. Needs process groups of one rank (`setup.initialize`).

    Raises RlcoreError where transformers cannot load the checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens_t = torch.randint(spec.vocab_size, (sum(LENGTHS),), generator=generator)
    with torch.no_grad():
        ours = _run_megatron(spec, bridge, checkpoint, tokens_t)
        reference, exact = _run_transformers(spec, checkpoint, tokens_t)
    alike_t = before_first_difference(ours.choices_tk, reference.choices_tk, LENGTHS)
    alike_t &= before_first_difference(exact.choices_tk, reference.choices_tk, LENGTHS)

    def largest_difference(run: Run) -> float:
        difference_tv = (run.logits_tv - reference.logits_tv)[alike_t]
        return float(difference_tv.abs().max() / exact.logits_tv.abs().max()) if len(difference_tv) else 0.0

    return Parity(
        max_rel_logit_diff=largest_difference(ours),
        reference_noise=largest_difference(exact),
        tokens=int(alike_t.sum()),
        left_out=int((~alike_t).sum()),
    )


def _run_megatron(spec: ModelSpec, bridge: WeightBridge, checkpoint: Path, tokens_t: Tensor) -> Run:
    """Build the model in fp32, load the checkpoint and run all sequences packed into one."""
    config = transformer_config(
        spec, parallel=Parallel(), dtype=torch.float32, recompute=Recompute(), megatron_overrides={}
    )
    (model,) = build_model(spec, config)
    load_hf([model], bridge, checkpoint)
    device = output_weight(model).device
    with recorded_choices(model) as choices:
        sequences = PackedSequences.of(LENGTHS, device)
        hidden_t1h = forward_hidden(model.eval(), tokens_t[None].to(device), sequences)
    logits_tv = (hidden_t1h[:, 0] @ output_weight(model).T).cpu()
    return Run(logits_tv, joined(choices, len(tokens_t)))


def _run_transformers(spec: ModelSpec, checkpoint: Path, tokens_t: Tensor) -> tuple[Run, Run]:
    """Run sequences one by one, in fp32 and in float64."""
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

    def run() -> Run:
        parts = [run_part(part_l) for part_l in tokens_t.split(LENGTHS)]
        return Run(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def run_part(tokens_l: Tensor) -> tuple[Tensor, Tensor]:
        with recorded_choices(model) as choices:
            logits_lv = model(tokens_l[None], use_cache=False).logits[0]
        return logits_lv, joined(choices, len(tokens_l))

    single = run()
    model.double()
    return single, run()
