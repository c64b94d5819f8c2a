"""Make an FP8 checkpoint of one in bf16: e4m3 values in blocks, each with a scale, as SGLang serves them.

SOURCE is a folder in Hugging Face format. Matrices of linear layers become FP8; embeddings, output layers,
norms, biases and routers stay as they are, and config.json tells servers so. A file of SOURCE becomes a file
of TARGET, one after the other, with the memory that one takes. A conversion that was cut off goes on where it
was: give the same command again. config.json is written last.

--check compares a finished TARGET with its SOURCE: every tensor and shape, and every value to the rounding of
e4m3. The exit code is 1 if anything differs.
"""

import argparse
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rlcore.cli.output import print_json, print_problems
from rlcore.errors import fail

SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore convert to-fp8 checkpoints/policy checkpoints/policy-FP8"
    parser.add_argument("action", choices=["to-fp8"])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with config.json and *.safetensors")
    parser.add_argument("target", type=Path, metavar="TARGET", help="a new folder, or one that was begun")
    parser.add_argument(
        "--block",
        type=_size,
        nargs=2,
        default=(128, 128),
        metavar=("ROWS", "COLUMNS"),
        help="values with one scale (128 128, which DeepEP needs)",
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare TARGET with SOURCE")
    parser.add_argument("--json", action="store_true", help="print what was done or found as JSON")


def run(args: argparse.Namespace) -> int:
    """Convert, or compare; 1 if a comparison finds anything. Raises RlcoreError for what cannot be done."""
    if args.check:
        return _check(args.source, args.target, as_json=args.json)
    report = _convert(args.source, args.target, tuple(args.block))
    if args.json:
        print_json(report)
    else:
        print("{fp8} tensors are FP8, {kept} as they were".format(**report))
        print("{gib_before} GiB became {gib_after} GiB".format(**report))
    return 0


def _convert(source: Path, target: Path, block: tuple[int, int]) -> dict[str, Any]:
    from rlcore.bridge.convert import Conversion
    from rlcore.bridge.safetensors_io import SafetensorsFolder
    from rlcore.models.hf_config import read_hf_config

    hf_config = read_hf_config(source)
    with SafetensorsFolder(source) as files:
        conversion = Conversion(files, target, hf_config, block)
        left, every = conversion.left(), sorted(conversion.files)
        conversion.begin()
        if whole := len(every) - len(left):
            _say(f"{whole} of {len(every)} files are whole already")
        for file in left:
            _say(f"{file}, {every.index(file) + 1} of {len(every)}")
            conversion.write(file)
        conversion.finish()
        before, after = (sum((folder / file).stat().st_size for file in every) for folder in (source, target))
        converted = len(conversion.fp8.names)
        return {
            "fp8": converted,
            "kept": len(files.tensors) - converted,
            "written": len(left),
            "passed_over": whole,
            "gib_before": round(before / 2**30, 1),
            "gib_after": round(after / 2**30, 1),
        }


def _check(source: Path, target: Path, *, as_json: bool) -> int:
    from rlcore.bridge.convert import BEGUN, differences
    from rlcore.bridge.safetensors_io import SafetensorsFolder
    from rlcore.models.hf_config import read_hf_config

    if (target / BEGUN).is_file():
        raise fail(str(target), "is not finished", "the same command without --check goes on")
    hf_config = read_hf_config(target)
    with SafetensorsFolder(source) as files:
        found = list(islice(differences(files, target, hf_config), SHOWN))
    if as_json:
        print_json({"differences": [asdict(problem) for problem in found]})
    else:
        print_problems(found)
        print("not the same" if found else f"the same to the rounding of e4m3, {len(files.tensors)} tensors")
    return int(bool(found))


def _size(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of values")
    return int(text)


def _say(line: str) -> None:
    """Progress, which is no data."""
    print(line, file=sys.stderr, flush=True)
