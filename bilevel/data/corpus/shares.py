"""What the training rows of the corpus are made of."""

from dataclasses import dataclass

from bilevel.errors import InputError


@dataclass(frozen=True)
class Shares:
    """Which share of the training rows is what; the rest is plain and clean.

    Attributes:
        fault: rows with a planted fault.
        wrong_answer: part of the faults with the answer of another row of the same kind.
        truncated: part of the faults whose answer breaks off.
        off_topic: part of the faults with an answer from another family of kinds, or with a remark.
        hard: right, but about rare words, larger numbers or a rare kind of task.
        duplicate: exact twins of plain clean rows.

    Raises:
        InputError: a number outside 0 .. 1, shares that sum to more than 1, or parts that do not sum to 1.
    """

    fault: float = 0.4
    wrong_answer: float = 0.5
    truncated: float = 0.25
    off_topic: float = 0.25
    hard: float = 0.05
    duplicate: float = 0.05

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise InputError(f"share {name} is {share}; give a number from 0 to 1")
        used = self.fault + self.hard + self.duplicate
        if used > 1 + 1e-6:
            raise InputError(f"shares fault, hard and duplicate sum to {used:.4g}; lower them to at most 1")
        parts = self.wrong_answer + self.truncated + self.off_topic
        if abs(parts - 1) > 1e-6:
            raise InputError(f"parts wrong_answer, truncated and off_topic sum to {parts:.4g}; make it 1")

    def counts(self, rows: int) -> dict[str, int]:
        """Rows of each sort, rounded down; of the faults, wrong answers take what the others leave."""
        faults = part(self.fault, rows)
        truncated, off_topic = part(self.truncated, faults), part(self.off_topic, faults)
        return {
            "truncated": truncated,
            "off_topic": off_topic,
            "wrong_answer": faults - truncated - off_topic,
            "hard": part(self.hard, rows),
            "duplicate": part(self.duplicate, rows),
        }


def part(share: float, count: int) -> int:
    """A share of a count, rounded down."""
    # 0.29 * 100 is 28.999999999999996 in binary fractions.
    return int(share * count + 1e-6)
