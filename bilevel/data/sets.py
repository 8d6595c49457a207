"""The rows of a run, ready to train on: checked, encoded, and what was left out or deserves a word."""

from dataclasses import dataclass
from itertools import combinations

from bilevel.data.chat import ChatTemplate
from bilevel.data.checks import check_overlap, check_rejected, find_overlap
from bilevel.data.encode import EncodedRows, encode_rows
from bilevel.data.exchange import Targets
from bilevel.data.files import ReadRows
from bilevel.data.rows import Rejected
from bilevel.data.templates import Template
from bilevel.data.tokenizer import Tokenizer
from bilevel.data.truncation import Truncation

_CALLED = {"pool": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class PreparedSets:
    """What `prepare_sets` returns.

    Args:
        encoded: encoded rows by name: `pool`, `validation`, and `test` where there are held-out rows.
        rejected: rows of any set that were left out.
        notices: lines for the user, each about something that was recognised, left out, cut or shared.
    """

    encoded: dict[str, EncodedRows]
    rejected: tuple[Rejected, ...]
    notices: tuple[str, ...]


def prepare_sets(
    pool: ReadRows,
    validation: ReadRows,
    test: ReadRows | None,
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
    max_length: int,
    max_rejected_share: float = 0.5,
    truncation: Truncation = "response_first",
    targets: Targets = "all",
) -> PreparedSets:
    """Encodes the sets of a run and checks them against each other.

    Args:
        pool: rows of the lower level.
        validation: trusted rows of the upper level.
        test: held-out rows, or None.
        tokenizer: a fast tokenizer with an end token.
        template: wording around the rows' texts.
        max_length: the most tokens a row may have.
        max_rejected_share: largest share of a set that may be left out.
        truncation: what rows that are too long lose.
        targets: which responses of a conversation are learned.

    Raises:
        InputError: too many rows of a set are rejected, no row has a response token, or all validation rows
            stand in the training rows.
    """
    sets = {"pool": pool, "validation": validation} | ({} if test is None else {"test": test})
    encoded: dict[str, EncodedRows] = {}
    rejected: list[Rejected] = []
    notices = [notice for read in sets.values() for notice in read.notices]
    for name, read in sets.items():
        total = len(read.rows) + len(read.rejected)
        check_rejected(read.rejected, total, max_rejected_share)
        found = encode_rows(read.rows, tokenizer, template, max_length, truncation, targets)
        left_out = (*read.rejected, *found.rejected)
        check_rejected(left_out, total, max_rejected_share)
        encoded[name] = found.encoded
        rejected += left_out
        if left_out:
            reasons = ", ".join(sorted({item.reason for item in left_out}))
            notices.append(
                f"{name}: {len(left_out)} of {total} rows rejected ({reasons}); see rejected.jsonl"
            )
        if found.truncated.warning:
            notices.append(f"{name}: {found.truncated.warning}")
    for first, second in combinations(encoded, 2):
        rows = encoded[first].rows, encoded[second].rows
        if second == "validation":
            overlap = check_overlap(*rows)
        else:
            overlap = find_overlap(*rows, _CALLED[first], _CALLED[second])
        if overlap.warning:
            notices.append(overlap.warning)
    return PreparedSets(encoded, tuple(rejected), tuple(notices))
