"""A row as tokens, before it is cut to a length: turns of context and target."""

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Literal, NamedTuple

Targets = Literal["all", "last"]
"""Which responses of a conversation are learned: all of them, or the last alone."""


class Exchange(NamedTuple):
    """Tokens that are read, then tokens to be predicted."""

    context: list[int]
    target: list[int]


def without_unlearned(exchanges: Sequence[Exchange], unlearned: Collection[int]) -> list[Exchange]:
    """The exchanges whose targets are learned; others become context of the next one.

    >>> without_unlearned([Exchange([1], [2]), Exchange([3], [4])], {0})
    [Exchange(context=[1, 2, 3], target=[4])]
    """
    learned, before = list[Exchange](), list[int]()
    for number, (context, target) in enumerate(exchanges):
        if number in unlearned:
            before += [*context, *target]
        else:
            learned.append(Exchange([*before, *context], target))
            before = []
    return learned


def last_alone(exchanges: Sequence[Exchange]) -> Exchange:
    """One exchange whose target is the last one's; all before it is context."""
    *earlier, (context, target) = exchanges
    return Exchange([*chain.from_iterable(chain.from_iterable(earlier)), *context], target)
