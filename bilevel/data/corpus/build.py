"""The embedded corpus: clean rows, planted faults, hard rows and twins, all from a seed."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from bilevel.data.corpus.facts import FACT_KINDS
from bilevel.data.corpus.faults import FAULTS, can_be_cut
from bilevel.data.corpus.kind import Example, Kind, shuffled
from bilevel.data.corpus.numbers import NUMBER_KINDS
from bilevel.data.corpus.reading import READING_KINDS
from bilevel.data.corpus.shares import Shares, part
from bilevel.data.corpus.words import WORD_KINDS
from bilevel.data.rows import Row
from bilevel.errors import InputError

KINDS: tuple[Kind, ...] = WORD_KINDS + FACT_KINDS + NUMBER_KINDS + READING_KINDS
PLAIN_KINDS = tuple(kind for kind in KINDS if kind.items)
DEFAULT_SHARES = Shares()


class Corpus(NamedTuple):
    """Three sets of rows: faults are in `train` alone."""

    train: tuple[Row, ...]
    valid: tuple[Row, ...]
    test: tuple[Row, ...]


def make_corpus(
    seed: int, rows: int = 2000, valid: int = 128, test: int = 512, shares: Shares = DEFAULT_SHARES
) -> Corpus:
    """Instructions with short answers, some of them faulty, in three sets.

    >>> corpus = make_corpus(seed=0, rows=20, valid=5, test=5)
    >>> len(corpus.train), sum(row.label("fault") != "" for row in corpus.train)
    (20, 8)

    Kinds of task are drawn evenly, as long as their prompts last. No prompt stands twice, neither in a set
    nor in two of them, except in twins; there are several thousand to share out. Faults are planted in plain
    rows. Validation and test rows are clean and hold the share `hard` of hard rows, too; they stay the same
    when `rows` or the other shares change.

    Labels: `fault` (name of the fault, "" where right), `kind`, `hard` ("yes" or ""), `duplicate` (id of the
    row that this one repeats, or "").

    Args:
        seed: chooses prompts, faults and order; the same on every machine.
        rows: training rows.
        valid: validation rows.
        test: test rows.
        shares: what the training rows are made of.

    Returns:
        The sets, with ids `corpus-train:1`, `corpus-valid:1`, `corpus-test:1` and so on.

    Raises:
        InputError: no rows in a set, or more rows than there are prompts.
    """
    for name, count in (("rows", rows), ("valid", valid), ("test", test)):
        if count < 1:
            raise InputError(f"{name} is {count}; the corpus needs at least 1 row in each set")
    random = Random(f"corpus {seed}")
    plain, hard = _Prompts(random, hard=False), _Prompts(random, hard=True)

    def clean(name: str, count: int) -> tuple[Row, ...]:
        hard_count = part(shares.hard, count)
        drawn = [_row(kind, example) for kind, example in plain.take(count - hard_count)]
        drawn += [_row(kind, example, hard="yes") for kind, example in hard.take(hard_count)]
        return _numbered(name, shuffled(drawn, random))

    held_out_test = clean("corpus-test", test)
    held_out_valid = clean("corpus-valid", valid)
    train = shuffled(_train(shares.counts(rows), rows, plain, hard, random), random)
    return Corpus(_numbered("corpus-train", train), held_out_valid, held_out_test)


class _Prompts:
    """Prompts of each kind in random order, handed out once."""

    def __init__(self, random: Random, hard: bool) -> None:
        self._sort = "hard" if hard else "plain"
        self._random = random
        self._waiting = [(kind, shuffled(kind.examples(hard), random)) for kind in KINDS]

    def take(self, count: int) -> list[tuple[Kind, Example]]:
        """The next ones, evenly over the kinds as long as they last, in random order."""
        taken: list[tuple[Kind, Example]] = []
        while len(taken) < count:
            ready = [(kind, examples) for kind, examples in self._waiting if examples]
            if not ready:
                missing = count - len(taken)
                raise InputError(
                    f"the corpus lacks {missing} {self._sort} prompts; ask for fewer rows in its sets"
                )
            for kind, examples in shuffled(ready, self._random)[: count - len(taken)]:
                taken.append((kind, examples.pop()))
        return shuffled(taken, self._random)


def _train(counts: dict[str, int], total: int, plain: _Prompts, hard: _Prompts, random: Random) -> list[Row]:
    prompts = plain.take(total - counts["duplicate"] - counts["hard"])
    rows: list[Row] = []
    # Cuts choose first: not every answer is long enough to be cut.
    for fault in ("truncated", "wrong_answer", "off_topic"):
        fitting = [
            position
            for position, (_, example) in enumerate(prompts)
            if fault != "truncated" or can_be_cut(example)
        ]
        chosen = set(fitting[: counts[fault]])
        if len(chosen) < counts[fault]:
            raise InputError(f"only {len(chosen)} answers are long enough to be cut; lower part truncated")
        for position in sorted(chosen):
            kind, example = prompts[position]
            answer = FAULTS[fault](example, kind, PLAIN_KINDS, random)
            rows.append(_row(kind, example, fault=fault, answer=answer))
        prompts = [pair for position, pair in enumerate(prompts) if position not in chosen]
    clean = [_row(kind, example) for kind, example in prompts]
    if counts["duplicate"] and not clean:
        raise InputError("no plain clean row is left to repeat; lower share fault, hard or duplicate")
    twins = [clean[position % len(clean)] for position in range(counts["duplicate"])]
    difficult = [_row(kind, example, hard="yes") for kind, example in hard.take(counts["hard"])]
    return rows + clean + twins + difficult


def _row(kind: Kind, example: Example, *, fault: str = "", hard: str = "", answer: str | None = None) -> Row:
    labels = {"fault": fault, "kind": kind.name, "hard": hard, "duplicate": ""}
    output = example.output if answer is None else answer
    return Row("", example.instruction, example.input, output, labels)


def _numbered(name: str, rows: Sequence[Row]) -> tuple[Row, ...]:
    first: dict[tuple[str, ...], str] = {}
    numbered = []
    for position, row in enumerate(rows, start=1):
        identity = f"{name}:{position}"
        original = first.setdefault(row.pair_key, identity)
        labels = {**row.labels, "duplicate": "" if original == identity else original}
        numbered.append(replace(row, id=identity, labels=labels))
    return tuple(numbered)
