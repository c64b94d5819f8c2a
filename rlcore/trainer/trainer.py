"""Trainer: what one rank of the training job does, from loading weights to the optimizer step.

Its methods take and return plain data, so that it serves a loop in the same process or one far away. Megatron's
schedule runs the micro-batches, so that one process and a pipeline of many are the same code.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from rlcore.algorithms.reduction import token_weights
from rlcore.bridge.export import Exporter, save_hf
from rlcore.bridge.load import load_hf
from rlcore.bridge.table import WeightBridge
from rlcore.config.schema import MTP, BadSteps, Model, Optimizer, Parallel, Recompute
from rlcore.data.train_sample import TrainSample, check_samples
from rlcore.errors import Problem
from rlcore.models.build import build_model, shares_prompts, transformer_config
from rlcore.models.config import gathers_tokens
from rlcore.models.context_parallel import ContextSplit
from rlcore.models.forward import forward_hidden
from rlcore.models.measures import measures
from rlcore.models.mtp import freeze_mtp
from rlcore.models.spec import ModelSpec
from rlcore.ranks import from_all_ranks
from rlcore.sync.parcel import Packing, Parcel
from rlcore.trainer.agreement import compare, own_selections
from rlcore.trainer.batch import MicroBatch
from rlcore.trainer.checkpoint import is_torch_dist, load_state, load_weights, start_saving
from rlcore.trainer.guard import BadStepError
from rlcore.trainer.metrics import Tally, Totals, summary, tally
from rlcore.trainer.objectives import Objective
from rlcore.trainer.optimizer import TrainingState, is_training_field
from rlcore.trainer.outgoing import Outgoing
from rlcore.trainer.routing import routing_metrics
from rlcore.trainer.scoring import Scorer
from rlcore.trainer.share import Share, share_of, speaks
from rlcore.trainer.state_writer import StateWriter
from rlcore.trainer.weights import HostWeights

_NAMED_SAMPLES = 5


@dataclass(frozen=True)
class _Trained:
    """What a micro-batch leaves behind: its losses, in case a sample has to be found by them, and its tally.

    Log-probs are there to be compared with the engine's, when all stages have run.
    """

    batch: MicroBatch
    loss_t: torch.Tensor
    log_probs_t: torch.Tensor
    tally: Tally


class Trainer:
    """Holds this rank's part of the policy. Needs process groups (`rlcore.trainer.setup.initialize`).

    `mtp` says how many MTP layers are loaded, by default none, and whether they learn.
    `megatron` holds fields of Megatron's transformer, DDP and optimizer configurations by their own names.
    `temperature` is the one that responses are sampled at; it divides the logits of every score, of which
    those of `log_probs_chunk` tokens exist at a time. `reference` is the checkpoint of the KL term's reference
    policy, by default the one that training starts from. `enter` is told what the trainer does next. `exporter`
    iterates over the current weights by their hub names.
    """

    def __init__(
        self,
        spec: ModelSpec,
        bridge: WeightBridge,
        checkpoint: Path,
        *,
        model: Model,
        parallel: Parallel | None = None,
        mtp: MTP | None = None,
        recompute: Recompute | None = None,
        megatron: Mapping[str, Any] | None = None,
        max_tokens_per_gpu: int = 4096,
        pad_multiple: int = 1,
        bad_steps: BadSteps | None = None,
        temperature: float = 1.0,
        log_probs_chunk: int | None = None,
        reference: Path | None = None,
        seed: int = 0,
        enter: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self._megatron = dict(megatron or {})
        self._mtp = mtp or MTP()
        self._config = transformer_config(
            spec,
            parallel=parallel or Parallel(),
            dtype=getattr(torch, model.dtype),
            recompute=recompute or Recompute(),
            megatron_overrides={k: v for k, v in self._megatron.items() if not is_training_field(k)},
            mtp_layers=self._mtp.num_layers,
        )
        self._bridge = bridge
        self._cost = spec.flops
        self._share_prompts = shares_prompts(spec, self._config)
        self._enter = enter
        self._seed = seed
        self._max_tokens = max_tokens_per_gpu
        self._context = ContextSplit(
            spec.cp_layout,
            self._config.context_parallel_size,
            parallel_state.get_context_parallel_rank(),
            self._config.tensor_model_parallel_size * pad_multiple,
        )
        self._bad_steps = bad_steps or BadSteps()
        self._scorer = Scorer(self._config.sequence_parallel, temperature, log_probs_chunk)
        self._reference: HostWeights | None = None
        self.state: TrainingState | None = None
        self._writer: StateWriter | None = None
        self.stages = build_model(spec, self._config)
        if not self._mtp.train:
            freeze_mtp(self.stages)
        self._source = checkpoint
        start = checkpoint if model.load is None else model.load.expanduser()
        self._read(start)
        self._reference_checkpoint = reference or start
        self._device = next(self.stages[0].parameters()).device
        self.exporter = Exporter(self.stages, bridge)
        self._outgoing = Outgoing(self.exporter, self._device)

    @property
    def step(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        return 0 if self.state is None else int(self.state.schedule.num_steps)

    def device_name(self) -> str:
        """The GPU of this rank as its driver calls it; empty on a CPU."""
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else ""

    def prepare_optimizer(self, settings: Optimizer, total_steps: int) -> None:
        """Make gradient buffers, optimizer and schedule, whose decay ends at `total_steps` unless set."""
        self.state = TrainingState(
            self.stages, self._config, settings, total_steps, self._megatron, self._bad_steps
        )

    def log_probs(self, samples: Sequence[TrainSample]) -> dict[int, torch.Tensor]:
        """Log-prob of each response token under the current weights: float32 [t], on the host.

        By index in `samples`, for those that this rank reports; each is reported by one rank of the world.
        """
        check_samples(samples)
        share = self._share(samples)
        with torch.no_grad():
            scored = self._run(share.batches, self._score_only, forward_only=True)
        found: dict[int, torch.Tensor] = {}
        for batch, log_probs_t in scored if speaks() else ():
            parts = log_probs_t.cpu().split(batch.response_lengths)
            found |= zip(batch.indices, parts, strict=True)
        return {index: log_probs_t for index, log_probs_t in found.items() if index < share.fillers_from}

    def reference_log_probs(self, samples: Sequence[TrainSample]) -> dict[int, torch.Tensor]:
        """`log_probs` under the reference policy, whose weights are read at the first call."""
        if self._reference is None:
            self._reference = self._read_reference()
        with self._reference.swapped_in():
            return self.log_probs(samples)

    def _read(self, checkpoint: Path) -> None:
        """Read weights, whichever of the two formats they are in."""
        if is_torch_dist(checkpoint):
            load_weights(self.stages, checkpoint)
        else:
            load_hf(self.stages, self._bridge, checkpoint)

    def _read_reference(self) -> HostWeights:
        own = HostWeights(self.stages)
        try:
            self._read(self._reference_checkpoint)
            return HostWeights(self.stages)
        finally:
            own.restore()

    def train_step(self, samples: Sequence[TrainSample], objective: Objective) -> dict[str, float]:
        """Take one optimizer step on `samples`, the whole step's; return its metrics, the same on all ranks.

        A bad step is left out (`skipped` is then 1) or ends in RlcoreError, as the recipe says; either way
        weights, optimizer and schedule stay as they are.
        """
        state = self._training_state()
        rates = {"lr": state.learning_rate}
        try:
            metrics = self.backward(samples, objective)
            state.guard.check(self.step + 1, metrics)
        except BadStepError as bad:
            state.guard.leave_out(bad)
            return {**bad.metrics, **rates, "skipped": 1.0}
        self._enter("optimizer step")
        state.step(metrics["grad_norm"])
        if self._device.type == "cuda":
            # Or what is timed next would be charged with it.
            torch.cuda.synchronize(self._device)
        return {**metrics, **rates, "skipped": 0.0}

    def backward(self, samples: Sequence[TrainSample], objective: Objective) -> dict[str, float]:
        """Leave the gradient of the loss on `samples` in the gradient buffers; return what there is to report.

        Raises BadStepError, on all ranks, where the loss or the gradient is not finite.
        """
        state = self._training_state()
        check_samples(samples)
        masks = [torch.as_tensor(np.asarray(sample.loss_mask, np.float32)) for sample in samples]
        share = self._share(samples, token_weights(masks, objective.reduction))
        state.zero_gradients()
        loss = partial(self._loss, objective, self._average_auxiliary_losses(samples))
        trained: list[_Trained] = self._run(share.batches, loss, forward_only=False)
        self._enter("metrics and gradient norm")
        selections = own_selections(share.batches)
        measured = [Tally(measures(batch.sequences.shared), {}) for batch in share.batches]
        own = Totals.of([*measured, *(_tallies(trained, selections) if speaks() else ())])
        metrics = summary(Totals.merge(from_all_ranks(own)))
        metrics |= {"grad_norm": state.gradient_norm(), "samples": float(len(samples)), **share.metrics}
        metrics |= routing_metrics(self.stages)
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise self._not_finite(trained if speaks() else [], samples, metrics)
        return metrics

    def first_weights(
        self, most_bytes: int, packing: Packing | None = None
    ) -> dict[str, torch.Tensor] | Parcel:
        """The first bundle of the current weights by hub name: at most `most_bytes`, or one larger module.

        As tensors, or packed for servers. All ranks take part; rank 0 alone is given something.
        """
        self._enter("weights for the engine")
        return self._outgoing.first(most_bytes, packing)

    def next_weights(self) -> dict[str, torch.Tensor] | Parcel:
        """The bundle after the last one, empty after all."""
        return self._outgoing.next()

    def give_up_weights(self) -> None:
        """No more bundles are asked for; those who wait for one are let go."""
        self._outgoing.give_up()

    def save(self, folder: Path) -> None:
        """Write weights, optimizer, schedule and random states in torch_dist format.

        Raises RlcoreError, on all ranks, if one of them could not write.
        """
        self._enter("planning a checkpoint")
        writer = start_saving(self._training_state(), folder, snapshot=False)
        self._enter("writing a checkpoint")
        writer.write()
        writer.seal()

    def start_saving(self, folder: Path) -> None:
        """`save` what there is now, while training goes on; `finish_saving` must follow before another save."""
        assert self._writer is None, "finish_saving comes first"
        self._enter("planning a checkpoint")
        self._writer = start_saving(self._training_state(), folder, snapshot=True)
        self._writer.write_in_background()

    def is_saving(self) -> bool:
        """Whether this rank still writes what `start_saving` began; it awaits no other."""
        return self._writer is not None and self._writer.is_writing

    def finish_saving(self) -> None:
        """Wait until all ranks have written. Raises RlcoreError, on all of them, if one could not."""
        assert self._writer is not None, "start_saving comes first"
        self._enter("writing a checkpoint")
        writer, self._writer = self._writer, None
        writer.seal()

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote: in the same layout, the next steps are those of the run that saved.

        In another one they are so up to rounding, and random states, of which each rank has its own, begin
        anew from seed and step; returns whether they were restored.
        """
        return load_state(self._training_state(), folder, self._seed)

    def save_hf(self, folder: Path) -> None:
        """Write a checkpoint like the one that training began with, config and tokenizer included.

        Raises RlcoreError, on all ranks, if it cannot be written.
        """
        self._enter("writing a checkpoint")
        save_hf(self.exporter, folder, source=self._source, enter=self._enter)

    def _training_state(self) -> TrainingState:
        assert self.state is not None, "prepare_optimizer comes first"
        return self.state

    def _share(self, samples: Sequence[TrainSample], weights: Sequence[torch.Tensor] | None = None) -> Share:
        return share_of(
            samples,
            weights,
            max_tokens_per_gpu=self._max_tokens,
            cost=self._cost,
            device=self._device,
            cp=self._context,
            equal_rounds=gathers_tokens(self._config),
            share_prompts=self._share_prompts,
        )

    def _run(
        self, batches: Sequence[MicroBatch], finish: Callable[..., Any], *, forward_only: bool
    ) -> list[Any]:
        """Run micro-batches through Megatron's schedule; what `finish` leaves of each, on the last stage."""
        stages = self.stages if self.state is None else self.state.stages

        def forward_step(iterator: Any, stage: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(iterator)
            self._enter(f"micro-batch {next(counter)} of {len(batches) * len(stages)}")
            hidden_s1h = forward_hidden(stage, batch.tokens_s[None], batch.sequences)
            return hidden_s1h, partial(finish, stage, batch)

        counter = itertools.count(1)
        iterators = [iter(batches) for _ in stages]
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=stages if len(stages) > 1 else stages[0],
            num_microbatches=len(batches),
            seq_length=max(len(batch.tokens_s) for batch in batches),
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _score_only(
        self, stage: torch.nn.Module, batch: MicroBatch, hidden_s1h: torch.Tensor, non_loss_data: bool
    ) -> tuple[MicroBatch, torch.Tensor]:
        return batch, self._scorer.score(stage, batch, hidden_s1h, "none").log_probs_t

    def _average_auxiliary_losses(self, samples: Sequence[TrainSample]) -> float:
        """Make Megatron's own losses, such as routers', means over the step's tokens; return ours' factor.

        Megatron adds them up over tokens and divides every gradient by the tokens in the end. Our weights have
        done that beforehand, so that ours is multiplied first.
        """
        if self._config.num_moe_experts is None:
            return 1.0
        tokens = float(sum(len(sample.tokens) for sample in samples))
        self._config.grad_scale_func = lambda loss: loss / tokens
        return tokens

    def _loss(
        self,
        objective: Objective,
        factor: float,
        stage: torch.nn.Module,
        batch: MicroBatch,
        hidden_s1h: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, _Trained]:
        scores = self._scorer.score(stage, batch, hidden_s1h, objective.entropy)
        token_loss = objective.token_loss(scores, batch)
        loss = (batch.weight_t * token_loss.loss_t).sum()
        with torch.set_grad_enabled(self._mtp.train):
            drafts = self._scorer.draft(stage, batch, hidden_s1h)
        if drafts and self._mtp.train:
            loss = loss + self._mtp.loss_scaling_factor * drafts.loss(batch.weight_t)
        done = _Trained(
            batch,
            token_loss.loss_t.detach(),
            scores.log_probs_t.detach(),
            tally(scores, token_loss, batch, drafts),
        )
        return loss * factor, torch.zeros((), dtype=torch.int, device=loss.device), done

    def _not_finite(
        self, trained: Sequence[_Trained], samples: Sequence[TrainSample], metrics: Mapping[str, float]
    ) -> BadStepError:
        """Name the samples whose loss is at fault, on whichever rank they are."""
        own = [
            samples[one.batch.indices[row]].name
            for one in trained
            for row in one.batch.sample_t[~(one.loss_t * one.batch.weight_t).isfinite()].unique().tolist()
        ]
        names = [name for rank in from_all_ranks(own) for name in rank]
        more = len(names) - _NAMED_SAMPLES
        listed = ", ".join(names[:_NAMED_SAMPLES]) + (f" and {more} more" if more > 0 else "")
        place, loss, norm = f"optimizer step {self.step + 1}", metrics["loss"], metrics["grad_norm"]
        message = f"loss {loss}, gradient norm {norm}" + (f", from {listed}" if names else "")
        remedy = "weights are as before the step; lower optimizer.lr, or look at these samples' advantages"
        return BadStepError(Problem(place, message, remedy), metrics)


def _tallies(trained: Sequence[_Trained], selections: Sequence[torch.Tensor | None]) -> Iterator[Tally]:
    """What micro-batches add to the step: what they did, and how it compares with the engine."""
    for one, own_t in zip(trained, selections, strict=True):
        yield one.tally
        yield compare(one.batch, one.log_probs_t, own_t)
