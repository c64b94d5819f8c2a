"""Prints what an SGLang installation takes on its command line, as JSON: `PYTHON describe_sglang.py`.

PYTHON is the interpreter of that installation, which need not know rlcore: nothing of it is imported here.
`python rlcore/config/describe_sglang.py > rlcore/config/data/sglang.json` renews the list that rlcore ships.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from typing import Any

NEGATION = "--no-"


def main() -> None:
    # What libraries print while they are imported is not part of the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    import sglang
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    actions = [action for action in parser._actions if action.dest not in ("help", "config")]
    lines = [f'  "{action.dest}": {json.dumps(describe(action))}' for action in actions]
    body = ",\n".join(sorted(lines))
    router = json.dumps(find_spec("sglang_router") is not None)
    release = json.dumps(sglang.__version__)
    answer.write(f'{{"release": {release},\n"router": {router},\n"arguments": {{\n{body}\n}}}}\n')


def describe(action: argparse.Action) -> dict[str, Any]:
    """An argument's flag, what it takes (`kind`), whether it takes many, and among what to choose."""
    flags = [flag for flag in action.option_strings if not flag.startswith(NEGATION)]
    exact = "--" + action.dest.replace("_", "-")
    found: dict[str, Any] = {"flag": exact if exact in flags else flags[0], "kind": kind(action)}
    if action.nargs in ("+", "*"):
        found["many"] = True
    if action.choices:
        found["choices"] = sorted(
            (choice if isinstance(choice, int) else str(choice) for choice in action.choices), key=str
        )
    return found


def kind(action: argparse.Action) -> str:
    """`flag` can only be set, `switch` set and unset; `any` takes what only the server knows."""
    if any(flag.startswith(NEGATION) for flag in action.option_strings):
        return "switch"
    if action.nargs == 0:
        return "flag"
    kinds: dict[Any, str] = {int: "int", float: "float", str: "text", None: "text", json.loads: "json"}
    return kinds.get(action.type, "any")


if __name__ == "__main__":
    main()
