"""Prompts as tokens: the tokenizer's chat template, and the length limit on what it renders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcore.data.datasets import Row, first_problems
from rlcore.data.sample import Message
from rlcore.errors import Problem, RlcoreError, fail, raise_if_any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlcore.config.generation import Dataset


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row with the tokens that generation starts from."""

    row: Row
    tokens: list[int]


def tokenize_prompts(
    rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", section: "Dataset"
) -> tuple[list[Prompt], int]:
    """Render and tokenize prompts; return them, and how many were left out for their length.

    Raises RlcoreError for rows that the chat template rejects, or if no prompt is left.
    """
    check_template(tokenizer, section)
    prompts: list[Prompt] = []
    problems: list[Problem] = []
    for row in rows:
        try:
            prompts.append(Prompt(row, prompt_tokens(row, tokenizer, section)))
        except RlcoreError as error:
            problems.extend(error.problems)
    raise_if_any(first_problems(problems))
    limit = section.max_prompt_tokens
    kept = [prompt for prompt in prompts if limit is None or len(prompt.tokens) <= limit]
    if not kept:
        shortest = min(len(prompt.tokens) for prompt in prompts)
        message = f"every prompt is longer than max_prompt_tokens: {limit}"
        raise fail(str(section.path), message, f"at least {shortest}, the length of the shortest")
    return kept, len(prompts) - len(kept)


def check_template(tokenizer: "PreTrainedTokenizerBase", section: "Dataset") -> None:
    """Raise RlcoreError for a template that the tokenizer lacks, or an option that the template never reads."""
    if not section.chat_template:
        return
    template = tokenizer.chat_template
    if not template:
        raise fail(str(section.path), "the tokenizer has no chat template", "chat_template: false")
    text = template if isinstance(template, str) else "".join(template.values())
    raise_if_any(
        Problem(
            f"chat_template_options.{name}",
            "the chat template never reads this variable",
            "leave it out, or take a checkpoint whose template reads it",
        )
        for name in section.chat_template_options
        if not re.search(rf"\b{re.escape(name)}\b", text)
    )


def prompt_tokens(row: Row, tokenizer: "PreTrainedTokenizerBase", section: "Dataset") -> list[int]:
    """Tokens of a row's prompt, up to where the answer starts; without a template, those of the text alone."""
    if not section.chat_template:
        return tokenizer.encode(str(row.prompt), add_special_tokens=False)
    rendered = render(row, messages(row), tokenizer, section, add_generation_prompt=True)
    return list(rendered["input_ids"])


def messages(row: Row) -> list[Message]:
    """The prompt as a chat; a text becomes one user message."""
    return [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt


def render(
    row: Row,
    chat: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    section: "Dataset",
    **options: Any,
) -> Any:
    """Apply the chat template with the row's tools and the section's options (`tokenize=False` gives text).

    Raises RlcoreError with the row's place for whatever the template objects to.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(chat), tools=row.tools, **section.chat_template_options, **options
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise fail(row.place, f"the chat template rejects this chat: {error}") from None
