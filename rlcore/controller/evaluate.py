"""Evaluation alone: a checkpoint, the problem sets of a recipe, no training; what `rlcore eval` does."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rlcore.cluster.environment import exported
from rlcore.controller.assembly import make_generator, running_engine
from rlcore.controller.evaluation import EvaluationSet
from rlcore.controller.preparation import Prepared
from rlcore.controller.site import Site, chosen_site
from rlcore.rollout.rewards import RewardRunner
from rlcore.telemetry.log_files import LogFolder
from rlcore.telemetry.progress import Progress


def evaluate(
    prepared: Prepared, sets: Sequence[EvaluationSet], rollouts: Path, quiet: bool = False
) -> dict[str, float]:
    """Return the metrics of every problem set, and keep the samples in folder `rollouts`."""
    with exported(prepared.recipe.cluster.env), chosen_site(prepared, serves=True) as site:
        return asyncio.run(_evaluate(prepared, site, sets, rollouts, quiet))


async def _evaluate(
    prepared: Prepared, site: Site, sets: Sequence[EvaluationSet], rollouts: Path, quiet: bool
) -> dict[str, float]:
    recipe = prepared.recipe
    rewards, place = recipe.rewards, "rewards"
    if recipe.eval.rewards is not None:
        rewards, place = recipe.eval.rewards, "eval.rewards"
    failures = rollouts / "failed-samples.jsonl"
    runner = RewardRunner.from_recipe(rewards, prepared.catalog, place, failures)
    try:
        for problems in sets:
            runner.check_dataset(prompt.row for prompt in problems.prompts)
        metrics: dict[str, float] = {}
        async with running_engine(prepared, site, LogFolder(rollouts)) as engine:
            rollouts.mkdir(parents=True, exist_ok=True)
            judge = make_generator(prepared, engine, runner)
            with Progress(len(sets), recipe.name, quiet=quiet) as progress:
                for problems in sets:

                    def show(done: int, total: int, tokens: int, name: str = problems.settings.name) -> None:
                        progress.status(name, done, total)

                    metrics |= await problems.evaluate(judge, recipe.seed, rollouts, 0, show)
        return metrics
    finally:
        await runner.close()
