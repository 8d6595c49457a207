"""A row as tokens, before it is cut to a length: turns of context and target."""

from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple

Targets = Literal["all", "last"]
"""Which responses of a conversation are learned: all of them, or the last alone."""


class Exchange(NamedTuple):
    """Tokens that are read, then tokens to be predicted."""

    context: list[int]
    target: list[int]


def last_alone(exchanges: Sequence[Exchange]) -> Exchange:
    """One exchange whose target is the last one's; all before it is context."""
    *earlier, (context, target) = exchanges
    return Exchange([*chain.from_iterable(chain.from_iterable(earlier)), *context], target)
