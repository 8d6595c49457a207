"""A folder's seal: the size and checksum of every file, so that whoever reads it knows that it is whole."""

import json
import zlib
from pathlib import Path

from bilevel.storage.atomic import write_atomically

FILE = "seal.json"
_BYTES_AT_ONCE = 1 << 20


def seal(folder: Path) -> None:
    """Writes `seal.json` about every file in a finished folder."""
    files = {str(path.relative_to(folder)): _checksum(path) for path in _files(folder)}
    write_atomically(folder / FILE, json.dumps(files, indent=1) + "\n")


def check_sealed(folder: Path) -> bool:
    """Checks a folder against its seal.

    Returns:
        Whether it is whole; false for a folder without a seal, of which nothing is known.

    Raises:
        ValueError: a file is missing, or is not what was sealed; the message names it.
    """
    path = folder / FILE
    if not path.exists():
        return False
    for name, expected in json.loads(path.read_text(encoding="utf-8")).items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != expected[0] or _checksum(file) != expected:
            raise ValueError(f"{name} is damaged")
    return True


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)


def _checksum(path: Path) -> list[int]:
    """Bytes, and their CRC-32."""
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BYTES_AT_ONCE):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]
