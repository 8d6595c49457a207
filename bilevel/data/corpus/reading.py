"""Kinds whose answer stands in the prompt: look it up, copy it, put it in another form."""

from itertools import permutations

from bilevel.data.corpus.kind import Item, Kind, fields, some

COLORS = ["red", "blue", "green", "black", "pink"]
PEOPLE = ["Ann", "Ben", "Tom", "Eve"]
DIGITS = range(1, 6)


def _tables(names: str, count: int) -> tuple[Item, ...]:
    keys = names.split()
    everything = [
        fields(
            x=" ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True)),
            k=keys[at],
            y=values[at],
        )
        for values in permutations(DIGITS, len(keys))
        for at in range(len(keys))
    ]
    return some(everything, count, f"tables {names}")


def _pairs() -> tuple[Item, ...]:
    return tuple(fields(a=a, b=b, x=f"{a} {b}", y=f"{a} {b}") for a, b in permutations(COLORS[:4], 2))


def _places(length: int, count: int) -> tuple[Item, ...]:
    everything = [
        fields(x=" ".join(row), place=place, y=row[at])
        for row in permutations(PEOPLE, length)
        for place, at in (("first", 0), ("last", -1))
    ]
    return some(everything, count, f"places {length}")


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
        ),
        _tables("a b", 60),
        _tables("a b c", 12),
    ),
    Kind(
        "place in a list",
        "names",
        (
            "Who comes {place}? | {x}",
            "Copy the {place} name. | {x}",
            'Give the {place} one of "{x}".',
        ),
        _places(2, 60),
        _places(3, 12),
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
            'Count the words in "{x}".',
        ),
        _repeated(COLORS, range(1, 5)),
        _repeated(COLORS[:3], range(6, 8)),
    ),
)
