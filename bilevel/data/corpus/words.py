"""Kinds that change a word, or name another one."""

from bilevel.data.corpus.kind import Item, Kind, both_ways, pairs

NOUNS = ["door", "lamp", "book", "cup", "ring", "song", "tree", "ship"]
LONG_NOUNS = ["elephant", "umbrella", "pineapple", "telescope", "orchestra", "mountain"]


def _shouted(words: list[str]) -> tuple[Item, ...]:
    return tuple({"x": word, "y": word.upper()} for word in words)


def _backwards(words: list[str]) -> tuple[Item, ...]:
    return tuple({"x": word, "y": word[::-1]} for word in words)


WORD_KINDS = (
    Kind(
        "plural",
        "words",
        (
            "Give the plural. | {x}",
            "Write the plural of this noun. | {x}",
            "Turn the noun into its plural. | {x}",
            'What is the plural of "{x}"?',
            'Make this plural: "{x}"',
            "State the plural in a sentence. | {x} => The plural is {y}.",
        ),
        pairs(
            "man=men woman=women baby=babies city=cities lady=ladies box=boxes dish=dishes leaf=leaves "
            "knife=knives day=days"
        ),
        pairs("mouse=mice goose=geese child=children tooth=teeth ox=oxen cactus=cacti"),
    ),
    Kind(
        "past tense",
        "words",
        (
            "Put the verb into the past. | {x}",
            "Give the past tense. | {x}",
            "Write the past form of this verb. | {x}",
            'What is the past tense of "{x}"?',
            'Say it as if it were yesterday: "{x}"',
            "Use the past form in a sentence. | {x} => Yesterday I {y}.",
        ),
        pairs(
            "go=went see=saw eat=ate run=ran sing=sang give=gave take=took walk=walked play=played "
            "look=looked"
        ),
        pairs("seek=sought weave=wove strive=strove flee=fled swear=swore freeze=froze"),
    ),
    Kind(
        "opposite",
        "words",
        (
            "Give the opposite. | {x}",
            "Write an antonym. | {x}",
            "Name the contrary. | {x}",
            'What is the opposite of "{x}"?',
            'Which word means the contrary of "{x}"?',
            "State the opposite in a sentence. | {x} => The opposite is {y}.",
        ),
        both_ways("hot=cold big=small happy=sad wet=dry rich=poor early=late"),
        pairs("scarce=abundant arrogant=humble ancient=modern shallow=deep generous=stingy vague=precise"),
    ),
    Kind(
        "capital letters",
        "shouted",
        (
            "Write the word in capital letters. | {x}",
            "Put it in upper case. | {x}",
            "Change to capitals. | {x}",
            'Shout "{x}".',
            'How is "{x}" written in capitals?',
        ),
        _shouted(NOUNS),
        _shouted(LONG_NOUNS),
    ),
    Kind(
        "plural in capitals",
        "shouted",
        (
            "Write the plural in capital letters. | {x}",
            "First make it plural, then change to capitals. | {x}",
            'Shout the plural of "{x}".',
        ),
        hard_items=pairs("man=MEN box=BOXES city=CITIES day=DAYS cup=CUPS ring=RINGS song=SONGS tree=TREES"),
    ),
    Kind(
        "backwards",
        "shouted",
        (
            "Write the word backwards. | {x}",
            "Reverse the letters. | {x}",
            'What is "{x}" read from right to left?',
        ),
        hard_items=_backwards(["cup", "ring", "song", "man", "dog", "box", "bike", "day"]),
    ),
)
