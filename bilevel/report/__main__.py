"""`python -m bilevel.report RUN_DIR ...` writes the reports of runs again, finished or not."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bilevel.errors import InputError
from bilevel.report import write_report
from bilevel.started import stand_behind_installed


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the reports and returns the exit code: 0, or 2 for a folder that holds no run."""
    parser = argparse.ArgumentParser(
        prog="python -m bilevel.report",
        description="Write report.html from what stands in a run's folder, also of a run that still goes on.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    stand_behind_installed()
    for folder in parser.parse_args(arguments).runs:
        try:
            print(f"report: {write_report(folder)}")
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
