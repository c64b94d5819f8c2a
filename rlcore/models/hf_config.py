"""Reads a checkpoint's config.json, the truth about its architecture. Imports no torch."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.errors import Problem, fail


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


def number_problems(
    hf_config: Mapping[str, Any], whole: Iterable[str], real: Iterable[str] = ()
) -> Iterator[Problem]:
    """Keys that are absent or hold no number: `whole` ones hold integers, `real` ones any number."""
    for keys, kind, words in (whole, int, "a whole number"), (real, (int, float), "a number"):
        for key in keys:
            if key not in hf_config:
                yield Problem("config.json", f"lacks {key}")
            elif not isinstance(hf_config[key], kind):
                yield Problem("config.json", f"{key} must be {words}, not {hf_config[key]!r}")


def block_fields(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Megatron's fields of RMS norms and of gated MLPs without biases, for layers that have both."""
    return {
        "ffn_hidden_size": hf_config["intermediate_size"],
        "normalization": "RMSNorm",
        "layernorm_epsilon": hf_config["rms_norm_eps"],
        "gated_linear_unit": True,
        "activation_func": hf_config.get("hidden_act", "silu"),
        "add_bias_linear": False,
    }


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its base, and the share of each head's dimensions that it rotates."""

    theta: float
    fraction: float


def read_rope(hf_config: Mapping[str, Any], *, fraction: float) -> Rope:
    """Read rope settings from where transformers 4 (top level) or 5 (rope_parameters) writes them.

    `fraction` is the family's own, for a file that names none. Raises RlcoreError for scaled positions.
    """
    given = {**hf_config, **(hf_config.get("rope_parameters") or {})}
    scaling = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        problem = f"rope type {kind!r} is not supported"
        raise fail("config.json", problem, "model.overrides: {rope_scaling: null}")
    return Rope(given.get("rope_theta", 10000.0), given.get("partial_rotary_factor", fraction))
