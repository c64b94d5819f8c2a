"""Where prompts come from: an endless, seeded walk over a dataset whose whole state is a few numbers.

Partial rollouts that a step put back are served before new prompts, and are part of that state.
"""

import copy
import hashlib
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from rlcore.data.chat import Prompt
from rlcore.data.sample import Sample
from rlcore.errors import fail

Group = list[Sample]


class EndlessOrder:
    """The order in which an endless walk visits `size` rows; each epoch has a permutation of its own.

    The permutation follows from (seed, epoch) alone, so that a walk resumes from a position without replay.
    """

    def __init__(self, size: int, *, seed: int, shuffle: bool) -> None:
        self.size = size
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._rows = list(range(size))

    def __getitem__(self, position: int) -> int:
        """Return the row at a position of the walk; position `size` begins the second epoch."""
        epoch, offset = divmod(position, self.size)
        if self._shuffle and epoch != self._epoch:
            self._rows = list(range(self.size))
            random.Random(f"{self._seed}:{epoch}").shuffle(self._rows)
            self._epoch = epoch
        return self._rows[offset]


class PromptSource:
    """Serves prompts in groups of `samples_per_prompt` samples, numbered over the whole run."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool, samples_per_prompt: int) -> None:
        self._prompts = prompts
        self._order = EndlessOrder(len(prompts), seed=seed, shuffle=shuffle)
        self._samples_per_prompt = samples_per_prompt
        self._seed = seed
        self._served = 0
        self._put_back: deque[Group] = deque()

    def next(self, count: int) -> list[Group]:
        """Return `count` groups: those put back, oldest first, and then new prompts."""
        waiting = [self._put_back.popleft() for _ in range(min(count, len(self._put_back)))]
        return waiting + [self._new_group() for _ in range(count - len(waiting))]

    def put_back(self, groups: Iterable[Group]) -> None:
        """Return unfinished groups, with the tokens that they have; `next` serves them first."""
        self._put_back.extend(groups)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on as if never stopped, in JSON-ready form."""
        return {
            "dataset": self._fingerprint,
            "seed": self._seed,
            "served": self._served,
            "put_back": [[sample.to_dict() for sample in group] for group in self._put_back],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state. Raises RlcoreError if dataset or seed are not those it was saved with."""
        for key, value in (("dataset", self._fingerprint), ("seed", self._seed)):
            if state[key] != value:
                remedy = "resume with the data and seed of the run, or start a new run"
                raise fail("prompt source", f"the {key} has changed since the state was saved", remedy)
        self._served = state["served"]
        self._put_back = deque([Sample.from_dict(sample) for sample in group] for group in state["put_back"])

    def _new_group(self) -> Group:
        prompt = self._prompts[self._order[self._served]]
        group = [_sample(prompt, self._served, index) for index in range(self._samples_per_prompt)]
        self._served += 1
        return group

    @cached_property
    def _fingerprint(self) -> str:
        """Hash of what is served, so that a state never meets another dataset unnoticed."""
        digest = hashlib.sha256()
        for prompt in self._prompts:
            digest.update(repr((prompt.tokens, prompt.row.label)).encode())
        return digest.hexdigest()


def _sample(prompt: Prompt, group: int, index: int) -> Sample:
    """Make one sample of a prompt; samples share nothing that can change."""
    row = prompt.row
    return Sample(
        prompt=copy.deepcopy(row.prompt),
        label=row.label,
        metadata=copy.deepcopy(dict(row.metadata)),
        group=group,
        index=index,
        prompt_tokens=list(prompt.tokens),
    )
