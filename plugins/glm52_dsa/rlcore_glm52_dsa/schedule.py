"""Which layers choose keys by an indexer of their own, and which take the choice of the last that did.

config.json says so in three ways, of which transformers and the engines read the first that is there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rlcore.errors import fail

_FULL = {"full": True, "F": True, "shared": False, "S": False}


def full_layers(hf_config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether each layer has an indexer; the others share.

    By `indexer_types`, else `index_topk_pattern`, else `index_topk_freq` with `index_skip_topk_offset`, whose
    rule and defaults (1 and 2) are those of transformers. Raises RlcoreError where a key names something else,
    speaks of another number of layers, or lets the first layer share.
    """
    layers = hf_config["num_hidden_layers"]
    for key in ("indexer_types", "index_topk_pattern"):
        if hf_config.get(key) is not None:
            return _named(key, hf_config[key], layers)
    frequency = _whole(hf_config, "index_topk_freq", 1)
    offset = _whole(hf_config, "index_skip_topk_offset", 2)
    if offset < 1 and frequency > 1 and (1 - offset) % frequency:
        message = f"index_skip_topk_offset {offset} lets layer 0 share, before which there is none"
        raise fail("config.json", message, "model.overrides: {index_skip_topk_offset: 1}")
    return tuple(max(layer - offset + 1, 0) % frequency == 0 for layer in range(layers))


def sources(full: Sequence[bool]) -> tuple[int, ...]:
    """The layer whose choice of keys each layer uses: the last full one up to it."""
    found: list[int] = []
    for layer, own in enumerate(full):
        found.append(layer if own else found[-1])
    return tuple(found)


def _named(key: str, words: Sequence[str], layers: int) -> tuple[bool, ...]:
    if len(words) != layers:
        raise fail("config.json", f"{key} names {len(words)} layers of {layers}")
    if unknown := sorted({word for word in words if word not in _FULL}):
        raise fail("config.json", f"{key} says {', '.join(unknown)}; layers are full (F) or shared (S)")
    full = tuple(_FULL[word] for word in words)
    if not full[0]:
        raise fail("config.json", f"{key} lets layer 0 share, before which there is none")
    return full


def _whole(hf_config: Mapping[str, Any], key: str, default: int) -> int:
    value = hf_config.get(key)
    if value is None:
        return default
    if not isinstance(value, int):
        raise fail("config.json", f"{key} must be a whole number, not {value!r}")
    return max(value, 1) if key == "index_topk_freq" else value
