"""`rlcore report RUN`: make the HTML page of a run, finished or not."""

import argparse
from pathlib import Path

from rlcore.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, as given to --run-dir")
    parser.add_argument("--json", action="store_true", help="print {report: PATH} instead of the path")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path. Raises RlcoreError if RUN is not a run folder."""
    from rlcore.telemetry.report import write_report

    page = write_report(args.run)
    if args.json:
        print_json({"report": str(page)})
    else:
        print(page)
    return 0
