"""Puts a reinforcement-learning run together and runs it to its end: what `rlcore train` does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlcore.controller.checkpoints import RunState
from rlcore.controller.evaluation import EvaluationSet
from rlcore.controller.grpo import Actors, Grpo
from rlcore.controller.preparation import Prepared, evaluation_sets, load_prompts
from rlcore.controller.run_start import RunPlace, restore, start
from rlcore.controller.selection import AlgorithmPlugins, select_algorithm
from rlcore.controller.session import open_session
from rlcore.data.chat import Prompt
from rlcore.data.prompts import PromptSource
from rlcore.rollout.local import LocalEngine

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Materials:
    """What a run is made of, read and checked; nothing has been started or written yet."""

    prepared: Prepared
    algorithm: AlgorithmPlugins
    prompts: Sequence[Prompt]
    evaluations: Sequence[EvaluationSet]

    @property
    def total_steps(self) -> int:
        """Steps of the run: as the recipe says, or whole passes over the prompts."""
        recipe = self.prepared.recipe
        if recipe.train.steps:
            return recipe.train.steps
        assert recipe.train.epochs
        return max(1, recipe.train.epochs * len(self.prompts) // recipe.rollout.prompts_per_step)


def gather(prepared: Prepared) -> Materials:
    """Read the datasets and load the plugins of a run; raises RlcoreError for what is wrong with them."""
    recipe = prepared.recipe
    assert recipe.data is not None
    algorithm = select_algorithm(prepared.catalog, recipe)
    return Materials(prepared, algorithm, load_prompts(prepared, recipe.data), evaluation_sets(prepared))


def train(materials: Materials, place: RunPlace, quiet: bool = False) -> None:
    """Run to the end, or until interrupted; the run folder then holds a checkpoint to resume from."""
    asyncio.run(_train(materials, place, quiet))


async def _train(materials: Materials, place: RunPlace, quiet: bool) -> None:
    prepared, recipe = materials.prepared, materials.prepared.recipe
    runner, judge = _reward_runners(materials, place)
    try:
        runner.check_dataset([prompt.row for prompt in materials.prompts])
        trainer = make_trainer(materials)
        engine = LocalEngine(
            prepared.checkpoint,
            concurrency=recipe.rollout.local.concurrency,
            dtype=recipe.rollout.local.dtype or recipe.model.dtype,
        )
        source = PromptSource(
            materials.prompts,
            seed=recipe.seed,
            shuffle=recipe.data.shuffle if recipe.data else True,
            samples_per_prompt=recipe.rollout.samples_per_prompt,
        )
        plugins = [*prepared.model.plugins, *materials.algorithm.plugins, *runner.plugins, *judge.plugins]
        folder = start(prepared.loaded, plugins, place)
        state = restore(folder, place, RunState(0, source.state()), trainer.load)
        source.restore(state.source)
        actors = Actors(
            trainer=trainer,
            engine=engine,
            generator=_generator(prepared, engine, runner, materials.algorithm),
            judge=_generator(prepared, engine, judge),
            source=source,
        )
        total = materials.total_steps
        with open_session(
            recipe, folder, total_steps=total, state=state, write_trainer=trainer.save, quiet=quiet
        ) as session:
            await Grpo(recipe, actors, materials.algorithm, materials.evaluations, session).run(total)
        if recipe.checkpoints.hf:
            trainer.save_hf(folder.path / "hf")
    finally:
        await runner.close()
        await judge.close()
