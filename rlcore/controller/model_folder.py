"""The trained model as a folder that others load: in Hugging Face format, replaced as a whole."""

import json
import shutil
from pathlib import Path

from rlcore.config.schema import Recipe
from rlcore.controller.policy import Policy
from rlcore.telemetry.files import write_json


def save_model(policy: Policy, recipe: Recipe, folder: Path) -> None:
    """Write weights, tokenizer and config.json with the recipe's overrides; an older model gives way."""
    draft = folder.with_name(folder.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    policy.save_hf(draft)
    if overrides := recipe.model.overrides:
        config = draft / "config.json"
        write_json(config, json.loads(config.read_text(encoding="utf-8")) | overrides)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
