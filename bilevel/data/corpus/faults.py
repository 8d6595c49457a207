"""Faults to plant: an answer that looks like one, and is not this question's."""

from collections.abc import Callable, Sequence
from random import Random

from bilevel.data.corpus.kind import Example, Kind, T

REMARKS = (
    "The weather is nice today.",
    "I like to read in the evening.",
    "Please close the door.",
    "Many thanks for your help.",
    "We meet at the station.",
    "The soup needs more salt.",
    "My phone is out of power.",
    "She plays tennis on Sundays.",
)
"""Sentences that answer no question."""

_SHORTEST_CUT = 4


def can_be_cut(example: Example) -> bool:
    """Whether an answer is long enough to lose its middle and end."""
    return len(example.output) >= _SHORTEST_CUT


def wrong_answer(example: Example, kind: Kind, kinds: Sequence[Kind], random: Random) -> str:
    """The answer of another item of the same kind, given in the wording of this question."""
    others = [item for item in kind.items if item["y"] != example.item["y"]]
    answers = [example.answered_as(item) for item in others]
    return _one(answers, random, lambda answer: answer != example.output)


def truncated(example: Example, kind: Kind, kinds: Sequence[Kind], random: Random) -> str:
    """The start of the answer, cut between a third and two thirds of it."""
    length = len(example.output)
    shortest, longest = max(1, length // 3), max(1, 2 * length // 3)
    return example.output[: shortest + int(random.random() * (longest - shortest + 1))].rstrip(" ,-")


def off_topic(example: Example, kind: Kind, kinds: Sequence[Kind], random: Random) -> str:
    """A remark, or the answer to a question of a kind from another family: half of each."""
    if random.random() < 0.5:
        return _one(REMARKS, random)
    other = _one(kinds, random, lambda other: other.family != kind.family)
    return _one(other.examples(hard=False), random, lambda answer: answer.output != example.output).output


FAULTS: dict[str, Callable[[Example, Kind, Sequence[Kind], Random], str]] = {
    "wrong_answer": wrong_answer,
    "truncated": truncated,
    "off_topic": off_topic,
}


def _one(values: Sequence[T], random: Random, fits: Callable[[T], bool] = lambda value: True) -> T:
    fitting = [value for value in values if fits(value)]
    return fitting[int(random.random() * len(fitting))]
