"""The supervised warm start: imitates answers, batch by batch; what `rlcore sft` does."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rlcore.cluster.environment import exported
from rlcore.config.schema import SFT
from rlcore.controller.assembly import running_policy
from rlcore.controller.checkpoints import RunState
from rlcore.controller.model_folder import save_model
from rlcore.controller.policy import Policy
from rlcore.controller.preparation import Prepared
from rlcore.controller.run_start import RunPlace, record, restore, start
from rlcore.controller.session import Session, open_session
from rlcore.controller.site import chosen_site
from rlcore.data.datasets import load_rows
from rlcore.data.sample import Sample
from rlcore.data.supervised import batch_at, supervised_samples
from rlcore.data.train_sample import TrainSample
from rlcore.trainer.objectives import SftObjective


@dataclass(frozen=True)
class Lessons:
    """What a warm start is made of, read and checked; nothing has been started or written yet."""

    prepared: Prepared
    sft: SFT
    samples: Sequence[Sample]


def gather(prepared: Prepared) -> Lessons:
    """Read and tokenize the answers to imitate; raises RlcoreError for every row that cannot be used."""
    sft = prepared.recipe.sft
    assert sft is not None
    samples, dropped = supervised_samples(load_rows(sft.data), prepared.tokenizer, sft, prepared.stop_ids)
    if dropped:
        print(f"{sft.data.path}: left out {dropped} rows over {sft.data.max_prompt_tokens} prompt tokens")
    return Lessons(prepared, sft, samples)


def imitate(lessons: Lessons, place: RunPlace, quiet: bool = False) -> None:
    """Train to the end, or until interrupted; the run folder then holds a checkpoint to resume from."""
    # An event loop only for its way with Ctrl-C: the step in progress ends before anything stops.
    with exported(lessons.prepared.recipe.cluster.env):
        asyncio.run(_imitate(lessons, place, quiet))


async def _imitate(lessons: Lessons, place: RunPlace, quiet: bool) -> None:
    prepared, sft = lessons.prepared, lessons.sft
    with (
        chosen_site(prepared, serves=False) as site,
        running_policy(prepared, site, sft.optimizer, sft.steps, temperature=1.0, quiet=quiet) as policy,
    ):
        folder = start(prepared.model.plugins, place)
        state = restore(folder, place, RunState(0, {}), policy.load)
        record(folder, prepared.loaded, prepared.model.plugins)
        with open_session(prepared.recipe, folder, sft.steps, state, policy, quiet=quiet) as session:
            while session.done < sft.steps and not session.source.get("learnt"):
                _step(lessons, policy, session)
                await asyncio.sleep(0)
        save_model(policy, prepared.recipe, folder.path / "hf")


def _step(lessons: Lessons, policy: Policy, session: Session) -> None:
    sft, seed = lessons.sft, lessons.prepared.recipe.seed
    samples = batch_at(lessons.samples, session.done, batch_size=sft.batch_size, seed=seed)
    with session.timer("train"), session.changing_weights():
        metrics = policy.train_step([_train_sample(sample) for sample in samples], SftObjective())
    # Kept in the checkpoint, so that a finished warm start resumes as finished.
    learnt = sft.stop_at_loss is not None and metrics["loss"] <= sft.stop_at_loss
    session.end_step(metrics, source={"learnt": learnt})


def _train_sample(sample: Sample) -> TrainSample:
    return TrainSample(
        name=f"row {sample.group + 1}",
        tokens=[*sample.prompt_tokens, *sample.tokens],
        prompt_length=len(sample.prompt_tokens),
        loss_mask=sample.loss_mask,
    )
