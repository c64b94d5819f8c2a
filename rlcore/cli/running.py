"""What `rlcore train` and `rlcore sft` share: their arguments, and the words at the end of a run."""

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlcore.cli.arguments import add_recipe, named_recipe
from rlcore.errors import fail

if TYPE_CHECKING:
    from rlcore.config.load import LoadedRecipe
    from rlcore.controller.run_start import RunPlace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a command that makes a run."""
    add_recipe(parser)
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME)")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --run-dir; needs no RECIPE"
    )
    parser.add_argument(
        "--accept-plugin-changes", action="store_true", help="resume even if an installed plugin has changed"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, start nothing, write nothing")
    parser.add_argument("--quiet", action="store_true", help="print warnings and results only")


def quiet_libraries() -> None:
    """Keep the warnings and bars of libraries off the terminal: none is addressed to a user of rlcore."""
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    logging.getLogger("py.warnings").propagate = False
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def load(args: argparse.Namespace) -> "LoadedRecipe":
    """The recipe that the arguments name; a resumed run has its own."""
    from rlcore.config.load import read_recipe

    if args.recipe or not args.resume:
        return read_recipe(named_recipe(args), args.overrides)
    if not args.run_dir:
        raise fail("--resume", "no run was given", "--run-dir DIR, or the recipe that the run was begun with")
    written = args.run_dir / "config.resolved.yaml"
    if not written.is_file():
        raise fail(str(args.run_dir), "holds no run to resume", "give the recipe and drop --resume")
    return read_recipe(str(written), args.overrides)


def run(command: str, args: argparse.Namespace, place: "RunPlace", body: Callable[[], None]) -> int:
    """Run `body` in `place`; however it ends, say what is there and how to go on.

    Raises RlcoreError for a place that cannot be used, before the body starts.
    """
    from rlcore.telemetry.run_folder import RunPaths, check_place

    check_place(place.path, place.resume)
    if args.dry_run:
        print("the recipe, its plugins, its data and its checkpoint are sound; nothing was started")
        return 0
    again = shlex.join(["rlcore", command, "--resume", "--run-dir", str(place.path)])
    try:
        with _termination_as_interrupt():
            body()
    except KeyboardInterrupt:
        if not RunPaths(place.path).is_run():
            raise
        print(f"\ninterrupted; everything up to the last step is saved. To go on:\n  {again}", file=sys.stderr)
        return 130
    except Exception:
        if RunPaths(place.path).is_run():
            print(f"the run stopped; when the cause is mended, this goes on:\n  {again}", file=sys.stderr)
        raise
    return 0


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """End a run on SIGTERM, which job schedulers send, as on Ctrl-C: saved, and with the way on."""
    # A shell that starts a run in the background has it ignore Ctrl-C, and with it would go SIGTERM.
    before = [
        signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT)),
    ]
    try:
        yield
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
