"""The `rlcore` command: chooses a command's module, imports only that one, and turns errors into messages.

A command module has `add_arguments(parser)` and `run(args) -> int`; the docstring of the module is its help.
Exit codes: 0 good, 1 the thing asked about is bad, 2 wrong usage, 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import rlcore

COMMANDS = {
    "list-plugins": ("rlcore.cli.list_plugins", "show the installed plugins and what is wrong with them"),
    "recipes": ("rlcore.cli.recipes", "show the recipes that the installed plugins ship"),
    "plan": ("rlcore.cli.plan", "check a recipe and show what it would do, before anything starts"),
    "train": ("rlcore.cli.train", "train with reinforcement learning"),
    "sft": ("rlcore.cli.sft", "train on reference answers, as a warm start"),
    "eval": ("rlcore.cli.eval", "measure a checkpoint on a recipe's evaluation sets"),
    "verify": ("rlcore.cli.verify", "compare a checkpoint with its model plugin, tensor by tensor"),
    "convert": ("rlcore.cli.convert", "make an FP8 checkpoint of one in bf16, for servers"),
    "reward": ("rlcore.cli.reward", "try a reward on a file of samples"),
    "report": ("rlcore.cli.report", "make one HTML page of a run"),
    "cluster": ("rlcore.cli.cluster", "make a Ray cluster of the nodes of a host file, or end it"),
    "doctor": ("rlcore.cli.doctor", "tell what this machine has and what it lacks"),
}

FIRST_STEPS = """\
first steps:
  rlcore doctor                      what this machine can run
  rlcore recipes                     what there is to run
  rlcore plan RECIPE                 check it, before anything starts
  rlcore train RECIPE --set train.steps=10
  rlcore report runs/NAME            curves and samples in one page

`rlcore COMMAND --help` explains a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; only `--debug` lets a traceback out."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    if args.command not in COMMANDS:
        parser.error(_unknown(args.command))
    try:
        return _run(args.command, args.rest, args.debug)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`rlcore recipes | head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="rlcore",
        usage="rlcore [--debug] COMMAND ...",
        description=f"Reinforcement learning for language models, made of plugins.\n\ncommands:\n{commands}",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rlcore {rlcore.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _run(name: str, arguments: Sequence[str], debug: bool) -> int:
    """Import a command's module, parse its arguments and run it."""
    try:
        module = importlib.import_module(COMMANDS[name][0])
        parser = argparse.ArgumentParser(prog=f"rlcore {name}", description=module.__doc__)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(parser)
        args = parser.parse_args(arguments)
        debug = debug or args.debug
        code: int = module.run(args)
        return code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        if debug:
            raise
        return _report(error)


def _report(error: Exception) -> int:
    """Say on stderr what went wrong and what to do; returns the exit code."""
    from rlcore.cli.output import print_problems
    from rlcore.errors import Problem, RlcoreError
    from rlcore.registry.requirements import install_command, is_optional

    if isinstance(error, RlcoreError):
        print_problems(error.problems)
    elif isinstance(error, ModuleNotFoundError) and is_optional(error.name or ""):
        print_problems([Problem("rlcore", f"{error.name} is not installed", install_command(error.name or ""))])
    else:
        message = f"unexpected {type(error).__name__}: {error}"
        print_problems([Problem("rlcore", message, "run it again with --debug for the traceback")])
    return 1


def _unknown(command: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(command, COMMANDS, n=1)
    return f"no command {command!r}; " + (f"did you mean {close[0]}?" if close else "see rlcore --help")


if __name__ == "__main__":
    sys.exit(main())
