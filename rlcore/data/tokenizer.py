"""The checkpoint's tokenizer, and the token ids that end a response."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.errors import fail

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint folder. Raises RlcoreError if there is none that works."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise fail(str(folder), "no such checkpoint folder")
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise fail(
            str(folder),
            "the checkpoint has no tokenizer",
            "copy tokenizer.json and tokenizer_config.json there",
        )
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        reason = str(error).strip().partition("\n")[0]
        raise fail(
            str(folder),
            f"the tokenizer does not load: {reason}",
            "fetch the checkpoint's tokenizer files again",
        ) from error


def stop_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end a response: `eos_token_id` of generation_config.json, else of config.json.

    Raises RlcoreError if neither names one, since every response would then run to its longest.
    """
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        ids = _read_json(file).get("eos_token_id") if file.is_file() else None
        if ids is not None:
            return _as_ids(ids, file)
    raise fail(str(folder), "no eos_token_id", "name it in generation_config.json or config.json")


def _read_json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise fail(str(file), f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise fail(str(file), "not a JSON object")
    return content


def _as_ids(value: object, file: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0 for id_ in ids):
        raise fail(str(file), f"eos_token_id is {value!r}", "a token id or a list of token ids")
    return tuple(ids)
