"""Megatron's data parallelism, distributed optimizer and learning-rate schedule, from a recipe's settings."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.distributed.finalize_model_grads import (
    _update_router_expert_bias,
    reset_model_temporary_tensors,
)
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.transformer_config import TransformerConfig

from rlcore.config.native import megatron_problems
from rlcore.config.schema import BadSteps, Optimizer
from rlcore.errors import Problem, fail, raise_if_any
from rlcore.models.config import by_name
from rlcore.models.forward import PolicyModel
from rlcore.models.mtp import refresh_embedding
from rlcore.models.router import counting_routers
from rlcore.trainer.guard import StepGuard

# Gradients of micro-batches add up in float32, whatever the model computes in. Weights are whole when a step
# ends: gathered later, they would be exported stale.
_DDP_FIELDS: Mapping[str, Any] = {
    "grad_reduce_in_fp32": True,
    "use_distributed_optimizer": True,
    "overlap_param_gather": False,
}


class TrainingState:
    """Weights wrapped for data parallelism, their optimizer and its schedule.

    `megatron` may hold any field of Megatron's DDP and optimizer configurations; others are left alone.
    """

    def __init__(
        self,
        stages: Sequence[PolicyModel],
        config: TransformerConfig,
        settings: Optimizer,
        total_steps: int,
        megatron: Mapping[str, Any],
        bad_steps: BadSteps,
    ) -> None:
        fields = _optimizer_fields(config, settings)
        raise_if_any([*_missing_hardware(settings), *megatron_problems(megatron)])
        ddp_config = DistributedDataParallelConfig(
            **{**_DDP_FIELDS, **_known(DistributedDataParallelConfig, megatron)}
        )
        self.stages = [DistributedDataParallel(config, ddp_config, stage) for stage in stages]
        config.finalize_model_grads_func = _finalize
        if ddp_config.overlap_grad_reduce:
            # Only the last micro-batch may send gradients on their way.
            no_sync = [stage.no_sync for stage in self.stages]
            config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self.optimizer: ChainedOptimizer = get_megatron_optimizer(
            OptimizerConfig(**{**fields, **_known(OptimizerConfig, megatron)}),
            self.stages,
            use_gloo_process_groups=False,
        )
        self.schedule = _schedule(self.optimizer, settings, total_steps)
        self.guard = StepGuard(bad_steps)
        self._clip = settings.clip_grad
        self._config = config

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def zero_gradients(self) -> None:
        for stage in self.stages:
            stage.zero_grad_buffer()
        self.optimizer.zero_grad()
        reset_model_temporary_tensors(self._config, self.stages)
        for _, router in counting_routers(self.stages):
            router.local_corrections.zero_()

    def gradient_norm(self) -> float:
        """Norm of the whole model's gradient, after the ranks' shares were summed."""
        self.optimizer.prepare_grads()
        return float(self.optimizer.get_grad_norm())

    def step(self, gradient_norm: float) -> None:
        """Clip by the norm that `gradient_norm()` gave, update the weights and advance the schedule."""
        if self._clip > 0:
            for part in self.optimizer.chained_optimizers:
                decoupled = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
                clip_grad_by_total_norm_fp32(part.get_parameters(), self._clip, gradient_norm, decoupled)
        self.optimizer.step_with_ready_grads()
        refresh_embedding([stage.module for stage in self.stages])
        if self._config.moe_router_enable_expert_bias:
            _update_router_expert_bias(self.stages, self._config)
        self.schedule.step(increment=1)


def _finalize(stages: list[torch.nn.Module], num_tokens: torch.Tensor | None = None, **kwargs: Any) -> None:
    """Sum gradients over ranks; the normalisation is in the token weights, so none is left to do here.

    Megatron would move routers' expert biases as well, before anyone knows whether the step will be taken, and
    add up gradients of the embedding and of its copy beside MTP layers, which has none.
    """
    config = stages[0].config
    hidden = {"moe_router_enable_expert_bias": False, "mtp_num_layers": None}
    own = {name: getattr(config, name) for name in hidden}
    vars(config).update(hidden)
    finalize_model_grads(stages, None, **kwargs)
    vars(config).update(own)


def _optimizer_fields(config: TransformerConfig, settings: Optimizer) -> dict[str, Any]:
    # Without a GPU the states are in host memory as they are.
    offload = settings.cpu_offload and torch.cuda.is_available()
    return {
        "optimizer": "adam",
        "lr": settings.lr,
        "min_lr": settings.min_lr,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "adam_eps": settings.eps,
        "clip_grad": settings.clip_grad,
        "bf16": config.bf16,
        "params_dtype": config.params_dtype,
        "use_distributed_optimizer": True,
        # Megatron's hybrid optimizer takes its gradients from where the precision-aware one does.
        "use_precision_aware_optimizer": settings.precision_aware or offload,
        # Checkpoints hold whole master weights, not what bfloat16 leaves of them.
        "store_param_remainders": False,
        "optimizer_cpu_offload": offload,
        "optimizer_offload_fraction": float(offload),
        "overlap_cpu_optimizer_d2h_h2d": settings.overlap_offload and offload,
    }


def _missing_hardware(settings: Optimizer) -> Iterator[Problem]:
    if settings.precision_aware and importlib.util.find_spec("transformer_engine") is None:
        yield Problem("optimizer.precision_aware", "needs TransformerEngine", "install it, or set it to false")


def _schedule(optimizer: ChainedOptimizer, settings: Optimizer, total_steps: int) -> OptimizerParamScheduler:
    # A short trial of a longer recipe may end within its warm-up.
    decay_steps = settings.decay_steps or max(total_steps, settings.warmup_steps + 1)
    if settings.warmup_steps >= decay_steps:
        raise fail(
            "optimizer.decay_steps",
            f"{settings.warmup_steps} steps of warm-up leave nothing of a schedule of {decay_steps} steps",
            f"more than optimizer.warmup_steps, {settings.warmup_steps}",
        )
    if settings.min_lr > settings.lr:
        raise fail("optimizer.min_lr", f"{settings.min_lr} exceeds optimizer.lr, {settings.lr}", "lower it")
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=decay_steps,
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=decay_steps,
        wd_incr_style="constant",
        # A resumed run follows the recipe, which may have gained steps; the checkpoint gives only its place.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def is_training_field(name: str) -> bool:
    """Whether Megatron's DDP or optimizer configuration has this field, and its transformer has not."""
    return name in (_names(DistributedDataParallelConfig) | _names(OptimizerConfig)) - _names(TransformerConfig)


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return by_name(kind, {name: value for name, value in values.items() if name in _names(kind)})


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}
