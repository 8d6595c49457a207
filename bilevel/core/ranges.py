"""Settings out of range are refused in one way."""

from __future__ import annotations

from typing import Any


def check_ranges(settings: Any, *rules: tuple[str, bool, str]) -> None:
    """Refuses settings that are outside their ranges, naming the first.

    Args:
        settings: an object with the settings as attributes, or a mapping of them by name.
        *rules: `(name, whether it is inside, what is allowed in words)`.

    Raises:
        ValueError: for the first rule that does not hold.

    Example:
        >>> from bilevel.core.ranges import check_ranges
        >>> check_ranges({"rate": -1.0}, ("rate", False, "positive"))
        Traceback (most recent call last):
        ...
        ValueError: rate must be positive, not -1.0
    """
    for name, inside, allowed in rules:
        if not inside:
            value = settings[name] if isinstance(settings, dict) else getattr(settings, name)
            raise ValueError(f"{name} must be {allowed}, not {value}")
