"""What this rank has of a step: micro-batches to run, and whether it reports them for all that run the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core import parallel_state

from rlcore.data.packing import Step, schedule
from rlcore.data.train_sample import TrainSample
from rlcore.models.context_parallel import ContextSplit
from rlcore.trainer.batch import MicroBatch, micro_batch


@dataclass(frozen=True)
class Share:
    """Micro-batches of this rank, as many as every other rank has; `step` is the whole step's plan.

    Indices of samples from `fillers_from` on are no samples: they stand for micro-batches that are empty here.
    """

    batches: list[MicroBatch]
    step: Step
    fillers_from: int

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "micro_batches": float(sum(len(rank) for rank in self.step.ranks)),
            "pack/token_fill": self.step.token_fill,
            "pack/lockstep_over_ideal": self.step.lockstep_over_ideal,
            "pack/makespan_over_ideal": self.step.makespan_over_ideal,
        }


def share_of(
    samples: Sequence[TrainSample],
    weights: Sequence[torch.Tensor] | None,
    *,
    max_tokens_per_gpu: int,
    cost: Callable[[int], float],
    device: torch.device,
    cp: ContextSplit | None = None,
    equal_rounds: bool = False,
    share_prompts: bool = False,
) -> Share:
    """Lay `samples`, one whole step's, out over the ranks, and make the micro-batches of this one.

    `weights` are each sample's shares [t] in the loss, by default zero; `cp` is this rank's share of a
    micro-batch's tokens. With `equal_rounds`, padding gives all ranks equally many tokens at a time;
    `share_prompts`, not beside it, has those of equal prompts computed once. All ranks find the same plan.
    """
    chunks = parallel_state.get_virtual_pipeline_model_parallel_world_size()
    (step,) = schedule(
        [len(sample.tokens) for sample in samples],
        dp=parallel_state.get_data_parallel_world_size(),
        cp=parallel_state.get_context_parallel_world_size(),
        max_tokens_per_gpu=max_tokens_per_gpu,
        global_batch_size=len(samples),
        cost=cost,
        # Megatron's interleaved schedule runs groups of as many micro-batches as there are stages.
        multiple_of=parallel_state.get_pipeline_model_parallel_world_size() if chunks else 1,
    ).steps
    filler = len(samples)
    samples = [*samples, _filler(samples[0])]
    weights = [*weights, torch.zeros(1)] if weights else None
    groups = step.ranks[parallel_state.get_data_parallel_rank()]
    tokens = _longest(step, samples, cp or ContextSplit()) if equal_rounds else [0] * len(groups)
    batches = [
        micro_batch(
            samples,
            group or (filler,),
            device,
            weights,
            cp,
            tokens=least,
            filler=not group,
            share_prompts=share_prompts,
        )
        for group, least in zip(groups, tokens, strict=True)
    ]
    return Share(batches, step, fillers_from=filler)


def _longest(step: Step, samples: Sequence[TrainSample], cp: ContextSplit) -> list[int]:
    """Tokens of the longest micro-batch of each round, padded; the filler is the last of `samples`."""

    def tokens(group: Sequence[int]) -> int:
        return sum(cp.padded([len(samples[index].tokens) for index in group or (-1,)]))

    return [max(map(tokens, groups)) for groups in zip(*step.ranks, strict=True)]


def _filler(sample: TrainSample) -> TrainSample:
    """Two tokens without weight: a rank with nothing to do must still take part in the others' collectives."""
    return replace(
        sample,
        name="filler",
        tokens=sample.tokens[:2],
        prompt_length=1,
        loss_mask=[0.0],
        advantages=[0.0],
        old_log_probs=None,
        ref_log_probs=None,
        rollout_log_probs=None,
        fresh=None,
        selections=None,
    )


def speaks() -> bool:
    """Whether this rank reports its micro-batches: of the ranks that run the same ones, exactly one does."""
    return (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
    )
