"""Makes everything that a model plugin's demo trains on, offline and the same every time: a tiny model with
random weights, a byte-level tokenizer, and additions of two-digit numbers.

The plugin gives what is its own: the architecture, the chat template and the special tokens.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlcore.cli.running import quiet_libraries

DATA_SEED = 1
HELD_OUT_NUMBERS = 25
HELD_OUT_PROBLEMS = 512
BYTES = 256


@dataclass(frozen=True)
class Demo:
    """A tiny model to be taught. `architecture` is config.json but for what the tokenizer decides.

    Special tokens get the ids after those of the 256 bytes, in their order; any of `stop_tokens` ends a
    response, and the first one pads.
    """

    architecture: Mapping[str, Any]
    chat_template: Path
    special_tokens: Sequence[str]
    stop_tokens: Sequence[str]

    @property
    def config(self) -> dict[str, Any]:
        """The content of the model's config.json."""
        stops = [BYTES + self.special_tokens.index(token) for token in self.stop_tokens]
        return {
            **self.architecture,
            "vocab_size": BYTES + len(self.special_tokens),
            "eos_token_id": stops,
            "pad_token_id": stops[0],
            "bos_token_id": None,
        }

    def write(self, folder: Path, seed: int = 0) -> None:
        """Write `model/`, `warm_start.jsonl`, `train.jsonl` and `held_out.jsonl` into a folder.

        The seed draws the weights; the problems never change.
        """
        self._write_model(folder / "model", seed)
        for name, pairs in additions().items():
            _write_problems(folder / f"{name}.jsonl", pairs)

    def _write_model(self, folder: Path, seed: int) -> None:
        from rlcore.testing.tiny import tiny_checkpoint, tiny_mtp_layer, tiny_tokenizer

        tiny_checkpoint(folder, self.config, seed=seed)
        if self.config.get("num_nextn_predict_layers"):
            tiny_mtp_layer(folder, seed=seed)
        tiny_tokenizer(
            folder,
            chat_template=self.chat_template.read_text(encoding="utf-8"),
            special_tokens=self.special_tokens,
            eos_token=self.stop_tokens[0],
        )

    def main(self, module: str, arguments: Sequence[str] | None = None) -> None:
        """Run the command line of the plugin's `module`: FOLDER [--seed N]."""
        parser = argparse.ArgumentParser(prog=f"python -m {module}", description=__doc__)
        parser.add_argument("folder", type=Path, help="where to write; made if it is missing")
        parser.add_argument("--seed", type=int, default=0, help="draws the model's weights")
        options = parser.parse_args(arguments)
        quiet_libraries()
        options.folder.mkdir(parents=True, exist_ok=True)
        self.write(options.folder, options.seed)
        print(f"wrote a tiny model and its problems to {options.folder}")


def additions() -> dict[str, list[tuple[int, int]]]:
    """Pairs of two-digit numbers; those held out share no number with the others."""
    rng = random.Random(DATA_SEED)
    numbers = rng.sample(range(10, 100), 90)
    held_out, seen = _pairs(numbers[:HELD_OUT_NUMBERS], rng), _pairs(numbers[HELD_OUT_NUMBERS:], rng)
    return {
        "warm_start": seen,
        "train": seen,
        "held_out": held_out[:HELD_OUT_PROBLEMS],
    }


def _pairs(numbers: Sequence[int], rng: random.Random) -> list[tuple[int, int]]:
    pairs = [(a, b) for a in numbers for b in numbers]
    rng.shuffle(pairs)
    return pairs


def _write_problems(file: Path, pairs: Iterable[tuple[int, int]]) -> None:
    """Write one row per addition: prompt, label, and the same number as the answer to imitate.

    A prompt is more than 16 tokens long: below that, CPU kernels of attention sum in another order.
    """
    rows = ({"prompt": f"What is {a}+{b}?", "label": str(a + b), "answer": str(a + b)} for a, b in pairs)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
