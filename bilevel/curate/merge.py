"""The next round's rows from this round's and what was made of them: who is replaced, who is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from bilevel.core.ranges import check_ranges
from bilevel.data import Row
from bilevel.errors import InputError

Merge = Literal["conserve", "author"]


def merged(
    rows: Sequence[Row],
    replacements: Sequence[Mapping[str, Row]],
    additions: Sequence[Row] = (),
    form: Merge = "conserve",
    redundancy: Float[np.ndarray, " rows"] | None = None,
) -> tuple[Row, ...]:
    """The rows of the next round.

        conserve   each row that was rewritten gives way to its first rewrite; what is added takes the places of the
                   most redundant rows that were not: as many rows as before, exactly
        author     each row that was rewritten goes, and all its rewrites come; what is added is added:
                   N + |rewritten more than once| + |added|, each counted as often as it is

    Replaced rows are known by their ids: rows that have the same texts are rows of their own, and so are rows that
    differ in their input alone, which the authors' code joins. Rewrites stand where their originals stood, in the order
    of the replacements; additions stand at the end.

    >>> rows = [Row(f"a:{n}", "Ask.", "", str(n)) for n in range(3)]
    >>> hard = {"a:1": Row("a:1~1.1", "Ask more simply.", "", "1")}
    >>> low = {"a:1": Row("a:1~1.2", "Ask better.", "", "1")}
    >>> [row.id for row in merged(rows, (hard, low))], [row.id for row in merged(rows, (hard, low), form="author")]
    (['a:0', 'a:1~1.1', 'a:2'], ['a:0', 'a:1~1.1', 'a:1~1.2', 'a:2'])

    Args:
        rows: this round's.
        replacements: rewrites by the id of the row that they replace, one mapping a signal (hard rows before low ones).
        additions: new rows.
        form: `conserve` or `author`.
        redundancy: of each row, such as the similarity to its nearest neighbours: under `conserve` the highest go for
            the additions, of equal ones the first. nan, like an absent array, for rows that must stay.

    Raises:
        InputError: a rewrite of a row that is not there, or more additions than rows that may go.
    """
    known = {row.id for row in rows}
    for each in replacements:
        for name in each:
            if name not in known:
                raise InputError(f"{name}: a rewrite of a row that is not among the rows; leave it out")
    gone: set[int] = set()
    if form == "conserve" and additions:
        gone = _most_redundant(rows, replacements, len(additions), redundancy)
    found: list[Row] = []
    for place, row in enumerate(rows):
        if place in gone:
            continue
        rewritten = [each[row.id] for each in replacements if row.id in each]
        found += rewritten[:1] if form == "conserve" and rewritten else rewritten or [row]
    return (*found, *additions)


def _most_redundant(
    rows: Sequence[Row],
    replacements: Sequence[Mapping[str, Row]],
    count: int,
    redundancy: Float[np.ndarray, " rows"] | None,
) -> set[int]:
    values = np.full(len(rows), np.nan) if redundancy is None else np.asarray(redundancy, np.float64)
    check_ranges(
        {"redundancy": values.shape},
        ("redundancy", values.shape == (len(rows),), f"one number for each of {len(rows)} rows"),
    )
    rewritten = {name for each in replacements for name in each}
    free = [
        place for place, row in enumerate(rows) if row.id not in rewritten and not np.isnan(values[place])
    ]
    if len(free) < count:
        raise InputError(
            f"{count} rows are to be added, and {len(free)} of {len(rows)} may go for them: say how redundant rows "
            "are, add fewer, or merge as the authors do"
        )
    return set(sorted(free, key=lambda place: (-values[place], place))[:count])
