"""Whether servers have the weights that they say they have: they answer "success" to names that they ignore.

After a sync each server continues a fixed prompt; the trainer scores the same tokens, and log-probs must agree.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from rlcore.config.schema import Recipe
from rlcore.controller.pipeline import beside_the_loop
from rlcore.controller.policy import Policy
from rlcore.data.train_sample import TrainSample
from rlcore.errors import fail
from rlcore.rollout.engine import Request, SamplingParams

if TYPE_CHECKING:
    import torch

    from rlcore.rollout.sglang.answer import Answer
    from rlcore.rollout.sglang.client import Client

PROMPT = tuple(range(32, 64))
NEW_TOKENS = 32
# Mean distance of log-probs, in nats, by what rounds most: far above what rounding does, far below what other
# weights do.
LIMITS = {"float32": 1e-3, "bfloat16": 0.1, "fp8": 0.25}


@runtime_checkable
class Served(Protocol):
    """An engine on servers."""

    @property
    def workers(self) -> "Sequence[Client]": ...

    @property
    def answering(self) -> "Sequence[Client]": ...

    def without_cache(self) -> AbstractAsyncContextManager[None]: ...


@dataclass
class Verifier:
    """Verifies servers as `when` says: each at its first sync, at every one, or never.

    `temperature` is the one of the trainer's log-probs; `precision` one of LIMITS. The trainer scores inside
    `scoring`, which gives it the memory to do so.
    """

    policy: Policy
    when: Literal["always", "first", "never"]
    temperature: float
    precision: str
    scoring: "Callable[[], AbstractAsyncContextManager[None]]" = nullcontext
    _verified: "list[Client]" = field(default_factory=list)

    @classmethod
    def from_recipe(
        cls, recipe: Recipe, policy: Policy, scoring: "Callable[[], AbstractAsyncContextManager[None]]"
    ) -> "Verifier":
        """As `sync.verify` says, for servers of the policy's checkpoint or of one that is quantized."""
        other = recipe.rollout.checkpoint not in (None, recipe.model.checkpoint)
        precision = "fp8" if other else recipe.model.dtype
        return cls(policy, recipe.sync.verify, recipe.rollout.temperature, precision, scoring)

    async def check(self, engine: object, version: int) -> dict[str, float]:
        """Returns metrics. Raises RlcoreError for the first server that has other weights than the trainer."""
        if self.when == "never" or not isinstance(engine, Served):
            return {}
        # An engine without servers needs no HTTP client.
        from rlcore.rollout.sglang.inspection import check_checksums, check_versions, probe

        workers = list(engine.workers)
        await check_versions(workers, version)
        due = [one for one in workers if self.when == "always" or one not in self._verified]
        if not due:
            return {}
        await check_checksums(workers)
        # Where only a router can be asked, it stands for all behind it.
        asked = [one for one in engine.answering if one in due or one not in workers]
        params = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=self.temperature)
        said = [await probe(one, Request("probe", PROMPT, params)) for one in asked]
        async with self.scoring():
            own = await beside_the_loop(partial(self.policy.log_probs, [_sample(answer) for answer in said]))
        gaps = [self._gap(*one) for one in zip(asked, said, own, strict=True)]
        self._verified = workers
        return {"sync/probe_gap": max(gaps)}

    def _gap(self, worker: "Client", said: "Answer", own_t: "torch.Tensor") -> float:
        """Mean distance between the server's log-probs and the trainer's."""
        gap = float((own_t - own_t.new_tensor(said.log_probs)).abs().mean())
        if not gap <= LIMITS[self.precision]:
            message = f"answers with other weights than the trainer's: log-probs are {gap:.3g} nats apart"
            limit = f"more than {LIMITS[self.precision]:g}, on average over {len(said.tokens)} tokens"
            remedy = "see the server's log for names that it did not load; sync: {verify: never} skips this"
            raise fail(worker.url, f"{message} ({limit})", remedy)
        return gap


def _sample(said: "Answer") -> TrainSample:
    """What a server answered to the probe, to be scored by the trainer."""
    return TrainSample(
        name="probe",
        tokens=[*PROMPT, *said.tokens],
        prompt_length=len(PROMPT),
        loss_mask=[1.0] * len(said.tokens),
    )
