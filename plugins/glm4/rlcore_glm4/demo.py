"""Makes everything the demo trains on, offline and the same every time: a tiny GLM-4 with random weights,
a byte-level tokenizer with the GLM chat template, and additions of two-digit numbers.

    python -m rlcore_glm4.demo FOLDER [--seed N]

The seed draws the weights; the problems never change. Held-out problems use numbers of their own, which
stand in no problem of either training set.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from rlcore.cli.running import quiet_libraries

DATA_SEED = 1
HELD_OUT_NUMBERS = 25
HELD_OUT_PROBLEMS = 512

# The order and the names are those of the published tokenizers; ids here start after the 256 bytes.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
BYTES = 256

# Weights start wider than the published 0.02, which suits models a thousand times this width.
# All query heads share one key head: a matrix product of fewer than four rows takes another kernel on CPUs,
# with other rounding, and the engine, which decodes one token a row, would part from the trainer's log-probs.
CONFIG = {
    "model_type": "glm4",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 100.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "vocab_size": BYTES + len(SPECIAL_TOKENS),
    "eos_token_id": [BYTES + SPECIAL_TOKENS.index(token) for token in STOP_TOKENS],
    "pad_token_id": BYTES,
    "bos_token_id": None,
}


def write_demo(folder: Path, seed: int = 0) -> None:
    """Write `model/`, `warm_start.jsonl`, `train.jsonl` and `held_out.jsonl` into a folder."""
    write_model(folder / "model", seed)
    for name, pairs in additions().items():
        write_problems(folder / f"{name}.jsonl", pairs)


def write_model(folder: Path, seed: int) -> None:
    """Write the tiny checkpoint with its tokenizer."""
    from rlcore.testing.tiny import tiny_checkpoint, tiny_tokenizer

    template = Path(__file__).with_name("templates") / "chat.jinja"
    tiny_checkpoint(folder, CONFIG, seed=seed)
    tiny_tokenizer(
        folder,
        chat_template=template.read_text(encoding="utf-8"),
        special_tokens=SPECIAL_TOKENS,
        eos_token=STOP_TOKENS[0],
    )


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


def write_problems(file: Path, pairs: Iterable[tuple[int, int]]) -> None:
    """Write one row per addition: prompt, label, and the same number as the answer to imitate.

    A prompt is more than 16 tokens long: below that, too, CPU kernels of attention sum in another order.
    """
    rows = ({"prompt": f"What is {a}+{b}?", "label": str(a + b), "answer": str(a + b)} for a, b in pairs)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlcore_glm4.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write; made if it is missing")
    parser.add_argument("--seed", type=int, default=0, help="draws the model's weights")
    options = parser.parse_args(arguments)
    quiet_libraries()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_demo(options.folder, options.seed)
    print(f"wrote a tiny model and its problems to {options.folder}")


if __name__ == "__main__":
    main()
