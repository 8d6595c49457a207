"""The data sets of a run, ready to train on: checked, encoded, and what was left out or deserves a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, NamedTuple, TypeVar

from bilevel.data.chat import ChatTemplate
from bilevel.data.dataset import Dataset
from bilevel.data.encode import EncodedRows, encode_rows
from bilevel.data.exchange import Targets
from bilevel.data.files import ReadRows
from bilevel.data.overlap import check_overlap, find_overlap
from bilevel.data.rejected import check_rejected, rejected_notice
from bilevel.data.rows import Rejected
from bilevel.data.templates import Template, choose_template
from bilevel.data.tokenizer import Tokenizer
from bilevel.data.truncation import Truncation
from bilevel.data.usage import usage_notices

D = TypeVar("D", bound=Dataset)

_CALLED = {"pool": "training", "validation": "validation", "test": "test"}


class ReadSets(NamedTuple):
    """Rows of a run as they were read.

    Attributes:
        pool: rows of the lower level.
        validation: trusted rows of the upper level.
        test: held-out rows, or None.
    """

    pool: ReadRows
    validation: ReadRows
    test: ReadRows | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedSets(Mapping[str, D], Generic[D]):
    """Data sets by name: `pool`, `validation`, and `test` where there are held-out rows.

    >>> import numpy as np
    >>> from bilevel.data import ArrayRows
    >>> sets = PreparedSets(sets={"pool": ArrayRows({"x": np.ones(3)}), "validation": ArrayRows({"x": np.ones(2)})})
    >>> list(sets), len(sets["pool"])
    (['pool', 'validation'], 3)

    Attributes:
        sets: the data sets.
        rejected: rows of any set that were left out.
        notices: lines for the user, each about something that was recognised, left out, cut or shared.
        template: name of the wording around the rows, "" for plain text and for rows that are no text.
    """

    sets: Mapping[str, D]
    rejected: tuple[Rejected, ...] = ()
    notices: tuple[str, ...] = ()
    template: str = ""

    def __getitem__(self, name: str) -> D:
        return self.sets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)


def prepare_sets(
    *,
    pool: ReadRows,
    validation: ReadRows,
    test: ReadRows | None = None,
    tokenizer: Tokenizer,
    template: str | Template | ChatTemplate = "auto",
    max_length: int = 512,
    max_rejected: float = 0.5,
    truncation: Truncation = "response_first",
    targets: Targets = "all",
    width: int | None = None,
) -> PreparedSets[EncodedRows]:
    """Encodes the sets of a run and checks them against each other.

    >>> from bilevel.data import Row, train_tokenizer
    >>> pool = ReadRows((Row("pool:1", "Add 2 and 3.", "", "5"), Row("pool:2", "Say hello.", "", "Hello.")), ())
    >>> trusted = ReadRows((Row("valid:1", "Add 1 and 3.", "", "4"),), ())
    >>> sets = prepare_sets(pool=pool, validation=trusted, tokenizer=train_tokenizer(["a"], 259))
    >>> sets.template, sets["pool"].tokens.shape, sets["validation"].names([0])
    ('plain', (2, 24), ['valid:1'])

    Args:
        pool: rows of the lower level.
        validation: trusted rows of the upper level.
        test: held-out rows, or None.
        tokenizer: a fast tokenizer with an end token.
        template: wording around the rows' texts, or its name; "auto" as in `choose_template`.
        max_length: the most tokens a row may have.
        max_rejected: largest share of a set that may be left out.
        truncation: what rows that are too long lose.
        targets: which responses of a conversation are learned.
        width: length T of all arrays, by default as `encode_rows` chooses it for each set.

    Raises:
        InputError: too many rows of a set are rejected, no row has a response token, or all validation rows
            stand in the training rows.
    """
    chosen = ""
    if isinstance(template, str):
        template, chosen = choose_template(template, pool.rows, tokenizer)
    read_sets = {"pool": pool, "validation": validation} | ({} if test is None else {"test": test})
    encoded: dict[str, EncodedRows] = {}
    rejected: list[Rejected] = []
    notices = list(pool.notices) + ([chosen] if chosen else [])
    notices += [notice for read in (validation, test) if read is not None for notice in read.notices]
    for name, read in read_sets.items():
        total = len(read.rows) + len(read.rejected)
        check_rejected(read.rejected, total, max_rejected)
        found = encode_rows(read.rows, tokenizer, template, max_length, truncation, targets, width)
        left_out = (*read.rejected, *found.rejected)
        check_rejected(left_out, total, max_rejected)
        encoded[name] = found.encoded
        rejected += left_out
        notices += rejected_notice(name, left_out, total)
        if found.truncated.warning:
            notices.append(f"{name}: {found.truncated.warning}")
        if name == "pool":
            notices += usage_notices(name, read.rows, found, tokenizer, template)
    for first, second in combinations(encoded, 2):
        rows = encoded[first].rows, encoded[second].rows
        if second == "validation":
            overlap = check_overlap(*rows)
        else:
            overlap = find_overlap(*rows, _CALLED[first], _CALLED[second])
        if overlap.warning:
            notices.append(overlap.warning)
    return PreparedSets(
        sets=encoded, rejected=tuple(rejected), notices=tuple(notices), template=template.name
    )
