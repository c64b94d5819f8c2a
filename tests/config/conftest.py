"""Recipes written by a test, in a current folder of its own."""

import textwrap

import pytest

SOUND = """
model: {checkpoint: some/model}
data: {path: train.jsonl}
rewards: [exact]
train: {steps: 10}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_recipe(text, name="recipe.yaml"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return write_recipe
