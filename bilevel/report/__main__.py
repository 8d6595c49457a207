"""`python -m bilevel.report RUN_DIR ...` writes the reports of runs again, finished or not."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bilevel.report import write_report
from bilevel.tool import run_tool


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the reports and returns the exit code: 0, or 2 for a folder that holds no run."""
    parser = argparse.ArgumentParser(
        prog="python -m bilevel.report",
        description="Write report.html from what stands in a run's folder, also of a run that still goes on.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    return run_tool(parser, _report, arguments)


def _report(options: argparse.Namespace) -> None:
    for folder in options.runs:
        print(f"report: {write_report(folder)}")


if __name__ == "__main__":
    sys.exit(main())
