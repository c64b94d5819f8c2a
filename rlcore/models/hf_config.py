"""Reads a checkpoint's config.json, the truth about its architecture. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore.errors import fail


def read_hf_config(folder: Path) -> Mapping[str, Any]:
    """Return the content of `folder`/config.json as it stands.

    Raises RlcoreError when the folder or the file is missing, is no JSON object, or names no model_type.
    """
    if not folder.is_dir():
        raise fail(str(folder), "is not a folder", "name a folder with config.json and *.safetensors files")
    path = folder / "config.json"
    if not path.is_file():
        raise fail(str(folder), "holds no config.json", "name a folder in Hugging Face format")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise fail(str(path), f"is not valid JSON: {error}", "copy it again from where it came") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise fail(str(path), "names no model_type", 'add "model_type": the name of its model plugin')
    return config
