"""What a run warned of while it ran, in `warnings.txt`: a terminal is closed, a folder stays."""

from pathlib import Path

FILE = "warnings.txt"


def add_warning(folder: Path, line: str) -> None:
    """Adds a warning, unless it stands there already: a continued run warns again of what it sees again.

    Args:
        folder: the run folder.
        line: one line.
    """
    line = " ".join(line.split())
    if line not in read_warnings(folder):
        with (folder / FILE).open("a", encoding="utf-8", newline="\n") as file:
            file.write(line + "\n")


def read_warnings(folder: Path) -> list[str]:
    """The warnings in the order in which they were given; nothing where there were none."""
    path = folder / FILE
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
