"""A kind of task as data: wordings, and items to fill them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, TypeVar

Item = Mapping[str, str]
"""Fields of a wording by name; `y` is the answer."""

OPENERS = ("", "Please help. ", "A quick one: ", "Next task. ", "Now this: ", "Short answer, please. ")
"""What may stand before any wording."""

T = TypeVar("T")


class Wording(NamedTuple):
    """One way to ask: texts with fields in braces."""

    instruction: str
    input: str
    output: str


class Example(NamedTuple):
    """A wording of a kind, filled with an item."""

    wording: Wording
    item: Item

    @property
    def instruction(self) -> str:
        """What is asked."""
        return self.wording.instruction.format(**self.item)

    @property
    def input(self) -> str:
        """What it is asked about, or nothing."""
        return self.wording.input.format(**self.item)

    @property
    def output(self) -> str:
        """The right answer."""
        return self.wording.output.format(**self.item)

    def answered_as(self, other: Item) -> str:
        """The answer that this wording gives to another item."""
        return self.wording.output.format(**other)


@dataclass(frozen=True)
class Kind:
    """A kind of task: every wording can be asked of every item.

    Attributes:
        name: its name in the label `kind`.
        family: kinds of one family have answers of one sort, so that only another family is off topic.
        wordings: "instruction | input => output"; input may be left out, and so may the output "{y}".
        items: what is asked about.
        hard_items: the same with rare words or larger numbers.
    """

    name: str
    family: str
    wordings: tuple[str, ...]
    items: tuple[Item, ...] = ()
    hard_items: tuple[Item, ...] = ()

    def examples(self, hard: bool) -> list[Example]:
        """Every wording of every item, plain or hard, with every opener."""
        wordings = [_wording(opener + text) for text in self.wordings for opener in OPENERS]
        items = self.hard_items if hard else self.items
        return [Example(wording, item) for item in items for wording in wordings]


def pairs(text: str) -> tuple[Item, ...]:
    """Items from "x=y x=y ..."."""
    split = [pair.split("=") for pair in text.split()]
    return tuple({"x": x, "y": y} for x, y in split)


def both_ways(text: str) -> tuple[Item, ...]:
    """Items from "x=y ..." and from "y=x ..."."""
    return pairs(text) + tuple({"x": item["y"], "y": item["x"]} for item in pairs(text))


def shuffled(values: Sequence[T], random: Random) -> list[T]:
    """A permutation that is the same on every Python: only `random()` itself is promised to stay."""
    keyed = [(random.random(), position) for position in range(len(values))]
    return [values[position] for _, position in sorted(keyed)]


def some(values: Sequence[T], count: int, seed: str) -> tuple[T, ...]:
    """At most `count` of the values, chosen by the seed alone."""
    return tuple(shuffled(values, Random(seed))[:count])


def fields(**values: Any) -> Item:
    """An item, with its values as text."""
    return {name: str(value) for name, value in values.items()}


def _wording(text: str) -> Wording:
    prompt, _, output = text.partition(" => ")
    instruction, _, input_text = prompt.partition(" | ")
    return Wording(instruction, input_text, output or "{y}")
