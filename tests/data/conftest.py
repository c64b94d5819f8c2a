"""A byte-level tokenizer with a template in the common style of role markers."""

import json
from pathlib import Path

import pytest

from rlcore.testing.tiny import tiny_tokenizer

TEMPLATE = (
    "{% if brief %}<|system|>Be brief.{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return tiny_tokenizer(folder, chat_template=TEMPLATE, special_tokens=SPECIAL, eos_token="<|end|>")


@pytest.fixture
def write_rows(tmp_path):
    def write(*rows: object, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
