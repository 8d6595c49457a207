"""Kinds about numbers, days and measures."""

from itertools import permutations, product

from bilevel.data.corpus.kind import Item, Kind, fields, some

ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
ROMAN = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]
TENS = {20: "twenty", 30: "thirty"}


def _sums(numbers: range) -> tuple[Item, ...]:
    return tuple(fields(a=a, b=b, y=a + b) for a in numbers for b in numbers)


def _following(names: list[str]) -> tuple[Item, ...]:
    return tuple(fields(x=name, y=names[(position + 1) % len(names)]) for position, name in enumerate(names))


def _compared(numbers: tuple[int, ...], count: int) -> tuple[Item, ...]:
    ways = {"larger": max, "smaller": min}
    chosen = product(permutations(numbers, 2), ways)
    everything = [fields(a=a, b=b, way=way, y=ways[way](a, b)) for (a, b), way in chosen]
    return some(everything, count, f"compared {numbers}")


def _sorted(numbers: range, length: int, count: int) -> tuple[Item, ...]:
    lists = some(list(permutations(numbers, length)), count, f"sorted {numbers} {length}")
    return tuple({"x": " ".join(map(str, row)), "y": " ".join(map(str, sorted(row)))} for row in lists)


def _spelled() -> tuple[Item, ...]:
    chosen = product(TENS, (1, 4, 7))
    return tuple(fields(x=ten + one, y=f"{TENS[ten]}-{ONES[one - 1]}") for ten, one in chosen)


NUMBER_KINDS = (
    Kind(
        "addition",
        "numbers",
        (
            "Add the numbers. | {a} + {b}",
            "Work out the sum. | {a} + {b}",
            "How much is this? | {a} + {b}",
            "Find the total. | {a} + {b}",
            'Calculate "{a} + {b}".',
        ),
        _sums(range(1, 4)),
        _sums(range(11, 13)),
    ),
    Kind(
        "double",
        "numbers",
        (
            "Double the number. | {x}",
            "Multiply by two. | {x}",
            "Write twice as much. | {x}",
            'What is two times "{x}"?',
            'Take "{x}" twice.',
        ),
        tuple(fields(x=number, y=2 * number) for number in range(1, 11)),
        tuple(fields(x=number, y=2 * number) for number in (35, 40, 45, 60)),
    ),
    Kind(
        "next number",
        "numbers",
        (
            "Which number comes next? | {x}",
            "Count one further. | {x}",
            "Add one. | {x}",
            'What number follows "{x}"?',
            'Name the number after "{x}".',
        ),
        tuple(fields(x=number, y=number + 1) for number in range(10, 18)),
        tuple(fields(x=number, y=number + 1) for number in (99, 109, 199, 999)),
    ),
    Kind(
        "comparison",
        "numbers",
        (
            "Pick the {way} number. | {a} {b}",
            "Which is {way}? | {a} {b}",
            "Copy the {way} of the two. | {a} {b}",
            'Give the {way} one of "{a} {b}".',
        ),
        _compared((2, 5, 8), 12),
        _compared(tuple(range(31, 50)), 12),
    ),
    Kind(
        "sort numbers",
        "number lists",
        (
            "Sort from small to large. | {x}",
            "Put in order. | {x}",
            "Write with the smallest first. | {x}",
            'Order the numbers "{x}".',
        ),
        _sorted(range(1, 6), 2, 20),
        _sorted(range(1, 6), 3, 12),
    ),
    Kind(
        "number word",
        "numbers",
        (
            "Write as a word. | {x}",
            "Spell out the number. | {x}",
            "Put it into letters. | {x}",
            'How is "{x}" written in words?',
            'Name the number "{x}".',
        ),
        tuple(fields(x=number, y=word) for number, word in enumerate(ONES[:10], start=1)),
        _spelled(),
    ),
    Kind(
        "digits",
        "numbers",
        (
            "Write in digits. | {x}",
            "Which number is it? | {x}",
            "Turn the word into a number. | {x}",
            'How is "{x}" written with digits?',
            'Give the digits for "{x}".',
        ),
        tuple(fields(x=word, y=number) for number, word in enumerate(ONES[:10], start=1)),
        tuple({"x": item["y"], "y": item["x"]} for item in _spelled()),
    ),
    Kind(
        "calendar",
        "calendar",
        (
            "What day comes next? | {x}",
            "Name the day after it. | {x}",
            "Which day is the next one? | {x}",
            'What day follows "{x}"?',
            'Tomorrow of "{x}"?',
            "Complete the sentence. | Today is {x}. => Tomorrow is {y}.",
        ),
        _following(DAYS),
    ),
    Kind(
        "month",
        "calendar",
        (
            "What month comes next? | {x}",
            "Name the month after it. | {x}",
            'What month follows "{x}"?',
        ),
        hard_items=_following(MONTHS),
    ),
    Kind(
        "Roman numeral",
        "letters",
        (
            "Write as a Roman numeral. | {x}",
            "How did the Romans write it? | {x}",
            'Give the Roman form of "{x}".',
        ),
        hard_items=tuple(fields(x=number, y=roman) for number, roman in enumerate(ROMAN, start=1)),
    ),
)
