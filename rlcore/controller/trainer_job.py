"""TrainerJob: what a rank must know to make its trainer, as plain data that crosses processes."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rlcore.cluster.group import Rank
from rlcore.config.rules import offloads_train
from rlcore.config.schema import Optimizer, Recipe
from rlcore.controller.selection import ModelPlugins, select_model
from rlcore.errors import raise_if_any
from rlcore.freed_memory import keep_freed_memory
from rlcore.layout.model import place_model
from rlcore.registry import Catalog, lock
from rlcore.threads import compute_with
from rlcore.trainer.offload import OffloadedTrainer
from rlcore.trainer.setup import initialize
from rlcore.trainer.trainer import Trainer


@dataclass(frozen=True)
class TrainerJob:
    """A trainer to be made on every rank. `plugins` are the model's, as the controller has them."""

    recipe: Recipe
    checkpoint: Path
    optimizer: Optimizer
    total_updates: int
    temperature: float
    plugins: tuple[lock.LockEntry, ...]

    def __call__(self, rank: Rank) -> Trainer | OffloadedTrainer:
        """Join the process group and load this rank's part of the policy, ready to train.

        Raises RlcoreError for weights that cannot be used, and if a plugin differs from the controller's.
        """
        recipe = self.recipe
        if recipe.train.threads:
            compute_with(recipe.train.threads)
        keep_freed_memory()
        rank.enter("joining the others")
        # Longer than the watchdog waits: it knows who is waited for, a collective does not.
        timeout = timedelta(seconds=2 * recipe.telemetry.end_stalled_after)
        initialize(
            recipe.parallel,
            recipe.seed,
            rank=rank.number,
            world_size=rank.world_size,
            store=rank.store,
            timeout=timeout,
        )
        rank.enter("loading weights")
        model = self._model()
        trainer = Trainer(
            model.spec,
            model.bridge,
            self.checkpoint,
            model=recipe.model,
            parallel=recipe.parallel,
            mtp=recipe.mtp,
            recompute=recipe.recompute,
            megatron=recipe.megatron,
            max_tokens_per_gpu=recipe.train.max_tokens_per_gpu,
            pad_multiple=recipe.train.pad_multiple,
            bad_steps=recipe.train.bad_steps,
            temperature=self.temperature,
            log_probs_chunk=recipe.train.log_probs_chunk,
            reference=Path(reference).expanduser() if (reference := recipe.algorithm.kl.reference) else None,
            seed=recipe.seed,
            enter=rank.enter,
        )
        trainer.prepare_optimizer(self.optimizer, self.total_updates)
        return OffloadedTrainer(trainer, rank.enter) if offloads_train(recipe) else trainer

    def _model(self) -> ModelPlugins:
        recipe = self.recipe
        catalog = Catalog.installed(recipe.plugins.deny, recipe.plugins.require)
        model = select_model(catalog, recipe, place_model(recipe, catalog).spec)
        raise_if_any(lock.differences(self.plugins, lock.make(model.plugins)))
        return model
