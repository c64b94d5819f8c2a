"""Supervised samples: prompt and answer as tokens, with a loss on what the assistant says and on its end.

Answers come from a key of the row or its metadata; a prompt that ends with an assistant turn is a whole
chat, and every assistant turn of it is learnt.
"""

import itertools
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from rlcore.data.chat import check_template, messages, prompt_tokens, render
from rlcore.data.datasets import Row, first_problems
from rlcore.data.prompts import EndlessOrder
from rlcore.data.sample import Message, Sample, Status
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlcore.config.generation import Dataset
    from rlcore.config.training import SFT

_GENERATION_TAG = re.compile(r"{%-?\s*generation\s*-?%}")
Masked = tuple[list[int], list[int]]


def supervised_samples(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", sft: "SFT", stop_ids: Collection[int]
) -> tuple[list[Sample], int]:
    """Turn rows into finished samples whose loss mask covers what is to be imitated.

    Returns them, and how many were left out because their prompt is too long. Nobody sampled their
    tokens, so log-probs and versions are 0. Raises RlcoreError with every row that has no answer or that
    the chat template rejects.
    """
    check_template(tokenizer, sft.data)
    samples: list[Sample] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        try:
            samples.append(_sample(row, number, _tokenize(row, tokenizer, sft, stop_ids)))
        except RlcoreError as error:
            problems.extend(error.problems)
    raise_if_any(first_problems(problems))
    limit = sft.data.max_prompt_tokens
    kept = [sample for sample in samples if limit is None or len(sample.prompt_tokens) <= limit]
    if not kept:
        raise fail(str(sft.data.path), f"every prompt is longer than max_prompt_tokens: {limit}")
    return kept, len(samples) - len(kept)


def batch_at(samples: Sequence[Sample], step: int, *, batch_size: int, seed: int) -> list[Sample]:
    """The samples of an optimizer step, counted from 0: a pure function, so a resumed run needs no state."""
    order = EndlessOrder(len(samples), seed=seed, shuffle=True)
    return [samples[order[step * batch_size + index]] for index in range(batch_size)]


def _sample(row: Row, number: int, masked: Masked) -> Sample:
    tokens, mask = masked
    start = mask.index(1)
    answer = tokens[start:]
    return Sample(
        prompt=row.prompt,
        label=row.label,
        metadata=dict(row.metadata),
        group=number,
        prompt_tokens=tokens[:start],
        tokens=answer,
        loss_mask=mask[start:],
        log_probs=[0.0] * len(answer),
        versions=[0] * len(answer),
        status=Status.COMPLETED,
    )


def _tokenize(row: Row, tokenizer: "PreTrainedTokenizerBase", sft: "SFT", stop_ids: Collection[int]) -> Masked:
    """Tokens of prompt and answer, and 1 where there is a loss."""
    if _is_whole_chat(row):
        tokens, mask = _chat_tokens(row, messages(row), tokenizer, sft.data)
    elif sft.data.chat_template:
        turn = {"role": "assistant", "content": _answer(row, sft.answer_key)}
        tokens, mask = _chat_tokens(row, [*messages(row), turn], tokenizer, sft.data)
    else:
        tokens = prompt_tokens(row, tokenizer, sft.data)
        answer = tokenizer.encode(_answer(row, sft.answer_key), add_special_tokens=False)
        tokens, mask = tokens + answer, [0] * len(tokens) + [1] * len(answer)
    if 1 not in mask:
        raise fail(row.place, "the answer has no tokens")
    return _with_stops(tokens, mask, tokenizer.eos_token_id, stop_ids)


def _is_whole_chat(row: Row) -> bool:
    return isinstance(row.prompt, list) and row.prompt[-1]["role"] == "assistant"


def _answer(row: Row, key: str) -> str:
    answer = row.columns.get(key, row.metadata.get(key))
    if not isinstance(answer, str) or not answer:
        found = ", ".join([*row.columns, *(f"metadata.{name}" for name in row.metadata)])
        raise fail(
            row.place, f"no text under {key!r} in the row or its metadata", f"answer_key: one of {found}"
        )
    return answer


def _chat_tokens(
    row: Row, chat: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", data: "Dataset"
) -> Masked:
    if _GENERATION_TAG.search(str(tokenizer.chat_template)):
        rendered = render(row, chat, tokenizer, data, return_assistant_tokens_mask=True)
        return list(rendered["input_ids"]), list(rendered["assistant_masks"])
    return _tokens_by_prefix(row, chat, tokenizer, data)


def _tokens_by_prefix(
    row: Row, chat: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", data: "Dataset"
) -> Masked:
    """Mask assistant turns of a template without generation tags: a turn is what it adds to the text before it.

    Turns are tokenized apart, as they are when the model generates them.
    """
    tokens: list[int] = []
    mask: list[int] = []
    done = ""
    full = render(row, chat, tokenizer, data, tokenize=False)

    def advance(text: str, learnt: int) -> None:
        nonlocal done
        if not (text.startswith(done) and full.startswith(text)):
            message = "the chat template rewrites earlier turns, so that the loss mask cannot be found"
            raise fail(row.place, message, "a template with {% generation %} tags, or one answer per row")
        new = tokenizer.encode(text[len(done) :], add_special_tokens=False)
        tokens.extend(new)
        mask.extend([learnt] * len(new))
        done = text

    for number, message in enumerate(chat):
        if message["role"] == "assistant":
            advance(render(row, chat[:number], tokenizer, data, tokenize=False, add_generation_prompt=True), 0)
            advance(render(row, chat[: number + 1], tokenizer, data, tokenize=False), 1)
    return tokens, mask


def _with_stops(tokens: list[int], mask: list[int], eos_id: int, stop_ids: Collection[int]) -> Masked:
    """Teach where a turn ends: learn the stop token after a turn, and add one where the last turn has none."""
    follows_turn = [0, *mask[:-1]]
    mask = [
        int(learnt or (after and token in stop_ids))
        for token, learnt, after in zip(tokens, mask, follows_turn, strict=True)
    ]
    end = len(mask) - mask[::-1].index(1)
    last_turn = itertools.takewhile(lambda i: mask[i], range(end - 1, -1, -1))
    if any(tokens[i] in stop_ids for i in last_turn):
        return tokens, mask
    return [*tokens[:end], eos_id], [*mask[:end], 1]
