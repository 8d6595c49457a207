"""How much memory and disk a derivative may take: as the user says, or a share of what is free."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jax

from bilevel.core.unroll import Budget
from bilevel.errors import InputError

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_DEVICE_SHARE, _OTHER_SHARE = 0.8, 0.5


def bytes_said(text: str) -> int:
    """Bytes from words such as 40GiB, 800 MiB or 1e9.

    Raises:
        InputError: it is no such number.
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", text, re.IGNORECASE)
    try:
        number = float(found[1]) if found else -1.0
    except ValueError:
        number = -1.0
    if found is None or number < 0:
        raise InputError(f"{text!r} is no number of bytes: say 40GiB, 800MiB or 1e9")
    unit = (found[2] or "").upper()
    return int(number * (1 << _UNITS[unit] if found[3] or not unit else 1000 ** (_UNITS[unit] // 10)))


def said(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError("every count has a unit")


def budget_of(memory: str | None, host: str | None, disk: str | None, folder: Path) -> Budget:
    """The budget that flags ask for; without them most of the device, and half of what is free elsewhere.

    On a CPU the device's memory is the host's.

    Args:
        memory: of each device.
        host: of the host besides.
        disk: where the run's folder lies.
        folder: the run's.
    """
    on_host = jax.default_backend() == "cpu"
    device = bytes_said(memory) if memory is not None else _free_on_device(on_host)
    there = folder if folder.exists() else folder.parent
    return Budget(
        device,
        bytes_said(host) if host is not None else (0 if on_host else int(_OTHER_SHARE * _free_on_host())),
        bytes_said(disk) if disk is not None else int(_OTHER_SHARE * shutil.disk_usage(there).free),
    )


def _free_on_device(on_host: bool) -> int:
    if on_host:
        return int(_OTHER_SHARE * _free_on_host())
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in statistics:
        raise InputError("this device does not say how much memory it has: give --memory")
    return int(_DEVICE_SHARE * statistics["bytes_limit"])


def _free_on_host() -> int:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError as error:
        raise InputError("this system does not say how much memory is free: give --memory") from error
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if found is None:
        raise InputError("this system does not say how much memory is free: give --memory")
    return 1024 * int(found[1])
