"""The page of recipe keys is the schema's."""

from pathlib import Path

from rlcore.config.fields import all_keys, sections_at
from rlcore.config.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_the_page_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "run: python -m rlcore.config.reference > docs/recipes.md"
    )


def test_every_key_is_described():
    undescribed = [
        key
        for key in all_keys()
        for section in sections_at(key.split(".")[:-1])
        if not (field := section.model_fields.get(key.rpartition(".")[2])) or not field.description
        if key.rpartition(".")[2] in section.model_fields
    ]
    assert undescribed == []
