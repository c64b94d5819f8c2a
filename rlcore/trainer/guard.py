"""Keeps bad gradients away from the weights: which steps are left out, and when too many are.

A loss says little about an update's size in reinforcement learning, so spikes are told by the gradient's norm.
"""

import logging
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch.distributed as dist

from rlcore.config.schema import BadSteps
from rlcore.errors import Problem, RlcoreError

_WINDOW = 64
# A median of fewer norms is no measure of what is usual.
_FEWEST = 8


class BadStepError(RlcoreError):
    """A step whose gradient should not reach the weights; `metrics` are those of its backward pass."""

    def __init__(self, problem: Problem, metrics: Mapping[str, float]) -> None:
        super().__init__(problem)
        self.metrics = metrics


class SpikeError(BadStepError):
    """A gradient norm far above the usual."""


class StepGuard:
    """Judges the steps of a run by what all ranks know alike; its state is part of a checkpoint."""

    def __init__(self, settings: BadSteps) -> None:
        self._settings = settings
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._in_a_row = 0

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Let a finite step pass, or raise SpikeError if its gradient norm exceeds what the recipe allows."""
        norm, factor = metrics["grad_norm"], self._settings.spike_factor
        if factor is not None and len(self._norms) >= _FEWEST and norm > factor * median(self._norms):
            message = f"gradient norm {norm:.4g} is over {factor:g} times the median {median(self._norms):.4g}"
            remedy = "raise train.bad_steps.spike_factor, or lower optimizer.lr"
            raise SpikeError(Problem(f"optimizer step {step}", message, remedy), metrics)
        # A step without advantages has no gradient, and says nothing about what is usual.
        if norm > 0:
            self._norms.append(norm)
        self._in_a_row = 0

    def leave_out(self, bad: BadStepError) -> None:
        """Count a step that is left out. Raises `bad` where the recipe wants the run to end."""
        fatal = self._settings.on_nonfinite == "fail" and not isinstance(bad, SpikeError)
        self._in_a_row += 1
        if fatal or self._in_a_row > self._settings.max_in_a_row:
            raise bad
        if dist.get_rank() == 0:
            logging.getLogger(__name__).warning("left out: %s", bad)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self._norms), "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._norms = deque(state["norms"], maxlen=_WINDOW)
        self._in_a_row = state["in_a_row"]
