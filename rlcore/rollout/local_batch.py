"""The running rows of the local engine: who sits where, one step for all, who is done.

Per-row numbers live in tensors, so that a step costs the same Python for one row as for a hundred; Python
sees a row when it enters and when it leaves. Queueing, requests and weights are the engine's.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rlcore.models.selections import SELECTIONS
from rlcore.rollout.engine import Request, SamplingParams
from rlcore.rollout.local_cache import ForwardPlan, PrefixCopy, SlotCache, group_prefills
from rlcore.rollout.local_sampler import Knobs, sample, stream, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A forward holds the activations of all tokens it prefills; rows beyond this wait for the next step.
PREFILL_TOKENS = 4096


@dataclass(eq=False)
class Row:
    """One request while it runs: `tokens` and what belongs to them are those made by this engine so far."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    selections: list[int] = field(default_factory=list)
    slot: int | None = None
    prefix: tuple[int, ...] = ()

    @property
    def made(self) -> int:
        """Response tokens known to Python, those of earlier attempts included."""
        return len(self.request.tokens) + len(self.tokens)

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    def context(self) -> list[int]:
        return [*self.request.prompt_tokens, *self.request.tokens, *self.tokens]


@dataclass(frozen=True)
class Entry:
    """A row on its way in: its tokens so far, and the row that has computed all but the last of them."""

    row: Row
    context: list[int]
    source: Row | None


@dataclass
class Slots:
    """Numbers of every row, along axis 0: the newest token and its position, response length and limit."""

    token: torch.Tensor
    position: torch.Tensor
    made: torch.Tensor
    limit: torch.Tensor
    stream: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    stop_ids: torch.Tensor
    out_tokens: torch.Tensor
    out_log_probs: torch.Tensor
    out_selections: torch.Tensor

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> "Slots":
        def whole(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        def real(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        numbers = [whole(rows) for _ in range(5)]
        knobs = real(rows), real(rows), whole(rows), whole(rows, 1)
        return cls(*numbers, *knobs, whole(rows, 1), real(rows, 1), whole(rows, 1))

    def head(self, rows: int) -> "Slots":
        """Views of the first rows."""
        return Slots(*(numbers[:rows] for numbers in vars(self).values()))

    def move(self, source: int, target: int) -> None:
        for numbers in vars(self).values():
            numbers[target] = numbers[source]

    def widen(self, name: str, width: int, fill: int = 0) -> None:
        """Make a two-dimensional field at least this wide."""
        old = getattr(self, name)
        if old.shape[1] < width:
            wide = old.new_full((old.shape[0], width), fill)
            wide[:, : old.shape[1]] = old
            setattr(self, name, wide)


class Batch:
    """Up to `capacity` rows that decode together in slots 0, 1, … without gaps."""

    def __init__(self, model: "PreTrainedModel", capacity: int) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._capacity = capacity
        self._cache = SlotCache()
        self._slots = Slots.empty(capacity, model.device)
        self._slots.stop_ids.fill_(-1)
        self._live = self._slots.head(0)
        self._knobs = Knobs()
        self._keep = torch.arange(0, device=model.device)
        self._prefixes: dict[tuple[int, ...], Row] = {}
        self._selects = False

    @property
    def vocab_size(self) -> int:
        return self._model.get_output_embeddings().weight.shape[0]

    @torch.inference_mode()
    def step(self, waiting: deque[Row]) -> list[Row]:
        """Let rows enter, run one forward, draw one token for every row; return the rows that are done.

        Done rows keep their slots until `remove`.
        """
        entered = self._enter(waiting)
        ids_t, plan = self._plan(entered)
        live = self._live
        logits_bv = self._model(
            input_ids=ids_t[None],
            position_ids=plan.position_t[None],
            use_cache=False,
            logits_to_keep=self._keep,
            slots=(self._cache, plan),
        ).logits[0]
        token_b, log_prob_b = sample(logits_bv, uniform(live.stream, live.made), self._knobs)
        live.out_tokens.scatter_(1, live.made[:, None], token_b[:, None])
        live.out_log_probs.scatter_(1, live.made[:, None], log_prob_b[:, None])
        self._note_selections(plan)
        live.token.copy_(token_b)
        live.made += 1
        live.position += 1
        done_b = (live.made >= live.limit) | (live.stop_ids == token_b[:, None]).any(-1)
        return [self.rows[slot] for slot in done_b.nonzero()[:, 0].tolist()]

    def collect(self, row: Row, version: int) -> None:
        """Hand a row the tokens made since it entered or was last collected, as made by `version`."""
        known, made = row.made, int(self._slots.made[row.slot])
        row.tokens += self._slots.out_tokens[row.slot, known:made].tolist()
        row.log_probs += self._slots.out_log_probs[row.slot, known:made].tolist()
        row.versions += [version] * (made - known)
        if self._selects:
            row.selections += self._slots.out_selections[row.slot, known:made].tolist()

    @torch.inference_mode()
    def remove(self, rows: Sequence[Row]) -> None:
        """Free these rows' slots and close the gaps with the last rows."""
        if not rows:
            return
        # From the last slot down, so that no row is moved that is about to leave.
        for row in sorted(rows, key=lambda row: row.slot, reverse=True):
            if self._prefixes.get(row.prefix) is row:
                del self._prefixes[row.prefix]
            last = self.rows.pop()
            if last is not row:
                self._cache.move(last.slot, row.slot, int(self._slots.position[last.slot]))
                self._slots.move(last.slot, row.slot)
                self.rows[row.slot] = last
                last.slot = row.slot
            row.slot = None
        self._resize()

    def forget_prefixes(self) -> None:
        """Share nothing that was computed until now: the weights have changed."""
        self._prefixes.clear()

    def release(self) -> None:
        """Give the cache's memory back; no row may be running."""
        self._prefixes.clear()
        self._cache.clear()

    def _note_selections(self, plan: ForwardPlan) -> None:
        """Where attention is sparse, write what was selected up to each row's newest token."""
        hash_t = plan.shared.get(SELECTIONS)
        self._selects = hash_t is not None
        if self._selects:
            kept = self._cache.keep(SELECTIONS, hash_t[None, :, None], plan)
            total_r = kept[: plan.rows, 0, : plan.longest, 0].masked_fill(plan.hidden_rl, 0).sum(-1)
            self._live.out_selections.scatter_(1, self._live.made[:, None], total_r[:, None])

    def _enter(self, waiting: deque[Row]) -> list[Entry]:
        """Give slots to waiting rows, in order, while there are slots and the prefill stays in bounds."""
        entered: list[Entry] = []
        tokens = 0
        while waiting and len(self.rows) < self._capacity:
            context = waiting[0].context()
            source = self._prefixes.get(tuple(context))
            tokens += 0 if source else len(context) - 1
            if entered and tokens > PREFILL_TOKENS:
                break
            entered.append(Entry(waiting.popleft(), context, source))
            self._seat(entered[-1])
        if entered:
            self._fill(entered)
            self._resize()
        return entered

    def _seat(self, entry: Entry) -> None:
        row = entry.row
        row.slot = len(self.rows)
        row.prefix = tuple(entry.context)
        self.rows.append(row)
        self._prefixes[row.prefix] = row

    def _fill(self, entered: list[Entry]) -> None:
        """Write the numbers of rows just seated, whose slots are the last ones: one copy a field."""
        slots, rows = self._slots, [entry.row for entry in entered]
        params = [row.params for row in rows]
        stops = [list(knob.stop_token_ids) for knob in params]
        slots.widen("stop_ids", max(map(len, stops)), fill=-1)
        for name in ("out_tokens", "out_log_probs", "out_selections"):
            slots.widen(name, max(knob.max_new_tokens for knob in params))
        width = slots.stop_ids.shape[1]
        columns: dict[str, list[Any]] = {
            "token": [entry.context[-1] for entry in entered],
            "position": [len(entry.context) - 1 for entry in entered],
            "made": [row.made for row in rows],
            "limit": [knob.max_new_tokens for knob in params],
            "stream": [stream((row.request.seed, *row.request.key)) for row in rows],
            "temperature": [knob.temperature or 1.0 for knob in params],
            "top_p": [knob.top_p for knob in params],
            "top_k": [knob.top_k if knob.top_k > 0 else self.vocab_size for knob in params],
            "stop_ids": [ids + [-1] * (width - len(ids)) for ids in stops],
        }
        for name, values in columns.items():
            numbers = getattr(slots, name)
            numbers[rows[0].slot : len(self.rows)] = numbers.new_tensor(values)

    def _resize(self) -> None:
        """Renew what depends on which rows there are."""
        self._live = live = self._slots.head(len(self.rows))
        self._keep = torch.arange(len(self.rows), device=live.token.device)
        params = [row.params for row in self.rows]
        greedy = [knob.temperature == 0 for knob in params]
        self._knobs = Knobs(
            temperature_b=live.temperature if any(knob.temperature not in (0, 1) for knob in params) else None,
            greedy_b=torch.tensor(greedy, device=live.token.device) if any(greedy) else None,
            top_p_b=live.top_p if any(knob.top_p < 1 for knob in params) else None,
            top_k_b=live.top_k if any(knob.top_k > 0 for knob in params) else None,
        )

    def _plan(self, entered: list[Entry]) -> tuple[torch.Tensor, ForwardPlan]:
        """Pack the newest token of every row, then what new rows have to prefill; ids [t] and the plan."""
        live, count = self._live, len(self.rows)
        longest = int(live.position.max()) + 1
        self._cache.reserve(count, longest, self._capacity)
        fresh = sorted((entry for entry in entered if not entry.source), key=lambda entry: len(entry.context))
        lengths = [len(entry.context) - 1 for entry in fresh]
        new, numbers = live.token.new_tensor, torch.arange(longest, device=live.token.device)
        owners = [new(entry.row.slot).expand(n) for entry, n in zip(fresh, lengths, strict=True)]
        plan = ForwardPlan(
            rows=count,
            row_t=torch.cat([self._keep, *owners]),
            position_t=torch.cat([live.position, *(numbers[:n] for n in lengths)]),
            longest=longest,
            prefills=group_prefills(count, lengths),
            copies=self._copies(entered),
        )
        return torch.cat([live.token, *(new(entry.context[:-1]) for entry in fresh)]), plan

    def _copies(self, entered: list[Entry]) -> tuple[PrefixCopy, ...]:
        """What rows copy that entered beside another one; all from rows that computed it, so in any order."""
        origin: dict[int, int] = {}
        pairs: dict[int, list[tuple[int, int]]] = {}
        for entry in entered:
            if entry.source:
                source, target = entry.source.slot, entry.row.slot
                origin[target] = origin.get(source, source)
                pairs.setdefault(len(entry.context) - 1, []).append((origin[target], target))
        new = self._live.token.new_tensor
        return tuple(PrefixCopy(*new(slots).unbind(1), length) for length, slots in pairs.items())
