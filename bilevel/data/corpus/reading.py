"""Kinds whose answer stands in the prompt: look it up, copy it, put it in another form."""

from collections.abc import Iterable
from itertools import permutations, product

from bilevel.data.corpus.kind import Item, Kind, fields, some

COLORS = ["red", "blue", "green", "black", "pink"]
PEOPLE = ["Ann", "Ben", "Tom", "Eve"]


def _tables(columns: dict[str, tuple[int, ...]], count: int) -> tuple[Item, ...]:
    everything = [
        fields(
            x=" ".join(f"{key}={value}" for key, value in zip(columns, values, strict=True)),
            k=key,
            y=value,
        )
        for values in product(*columns.values())
        for key, value in zip(columns, values, strict=True)
    ]
    return some(everything, count, f"tables {columns}")


def _places(rows: Iterable[tuple[str, ...]], count: int) -> tuple[Item, ...]:
    everything = [
        fields(x=" ".join(row), place=place, y=row[at])
        for row in rows
        for place, at in (("first", 0), ("last", -1))
    ]
    return some(everything, count, "places")


def _pairs() -> tuple[Item, ...]:
    return tuple(fields(a=a, b=b, x=f"{a} {b}", y=f"{a} {b}") for a, b in permutations(COLORS[:4], 2))


def _repeated(words: list[str], counts: range) -> tuple[Item, ...]:
    return tuple(fields(x=" ".join([word] * count), y=count) for word in words for count in counts)


READING_KINDS = (
    Kind(
        "table",
        "numbers",
        (
            "Look up {k}. | {x}",
            "What is {k}? | {x}",
            "Read the value of {k}. | {x}",
            "Tell me {k}. | {x}",
            'Find {k} in "{x}".',
        ),
        # A column's values tell it apart, so that a small model can learn to look up; the hard ones share them.
        _tables({"a": (3, 5), "b": (4, 8)}, 8),
        _tables({"a": (2, 6), "b": (2, 6), "c": (2, 6)}, 12),
    ),
    Kind(
        "place in a list",
        "names",
        (
            "Who comes {place}? | {x}",
            "Copy the {place} name. | {x}",
            "Name the {place} person. | {x}",
            'Give the {place} one of "{x}".',
        ),
        _places(product(("Ann", "Tom"), ("Ben", "Eve")), 8),
        _places(permutations(PEOPLE, 3), 12),
    ),
    Kind(
        "list form",
        "color lists",
        (
            "Join with a comma. | {x} => {a}, {b}",
            "Put a comma between. | {x} => {a}, {b}",
            "Write with a dash. | {x} => {a}-{b}",
            "Join with and. | {x} => {a} and {b}",
        ),
        _pairs(),
    ),
    Kind(
        "counting",
        "numbers",
        (
            "How many words are there? | {x}",
            "Count the words. | {x}",
            "Give the number of words. | {x}",
            'Count the words in "{x}".',
        ),
        _repeated(COLORS[:3], range(1, 5)),
        _repeated(COLORS[:3], range(6, 8)),
    ),
)
