"""Kinds that ask for a fact about the world."""

from bilevel.data.corpus.kind import Item, Kind, pairs

CLASSES = {
    "fruit": "apple pear plum lemon",
    "tool": "drill hammer saw",
    "vehicle": "bus car train boat",
    "clothing": "hat shirt shoe coat",
}
RARE_CLASSES = {
    "fruit": "papaya quince",
    "tool": "chisel pliers",
    "vehicle": "tram yacht",
    "clothing": "poncho",
}


def _members(classes: dict[str, str]) -> tuple[Item, ...]:
    return tuple({"x": word, "y": name} for name, words in classes.items() for word in words.split())


def _judged(things: str, good: str, bad: str, form: str) -> tuple[Item, ...]:
    verdicts = dict.fromkeys(good.split(), "positive") | dict.fromkeys(bad.split(), "negative")
    texts = [(form.format(thing=thing, word=word), word) for thing in things.split() for word in verdicts]
    return tuple({"x": text, "y": verdicts[word]} for text, word in texts)


FACT_KINDS = (
    Kind(
        "category",
        "facts",
        (
            "Fruit, tool, vehicle or clothing? | {x}",
            "Name the category. | {x}",
            "Sort the word into a class. | {x}",
            'To which category does "{x}" belong?',
            'Classify "{x}".',
        ),
        _members(CLASSES),
        _members(RARE_CLASSES),
    ),
    Kind(
        "young animal",
        "facts",
        (
            "Name the young of this animal. | {x}",
            "Give the word for its baby. | {x}",
            "How is the little one called? | {x}",
            'How is the young of the "{x}" called?',
            'Which word names the child of the "{x}"?',
            "Describe the young one. | {x} => Its young is a {y}.",
        ),
        pairs("cat=kitten horse=foal sheep=lamb hen=chick bear=cub goat=kid deer=fawn"),
        pairs("swan=cygnet hare=leveret eel=elver kangaroo=joey owl=owlet"),
    ),
    Kind(
        "sound",
        "facts",
        (
            "What sound does it make? | {x}",
            "Write the sound of this animal. | {x}",
            "Give its noise. | {x}",
            'What does the "{x}" say?',
            'Which noise belongs to the "{x}"?',
            "Imitate the animal. | {x} => It goes {y}.",
        ),
        pairs("dog=woof cow=moo pig=oink duck=quack bee=buzz frog=croak lion=roar snake=hiss"),
        pairs("crow=caw donkey=bray pigeon=coo wolf=howl mouse=squeak"),
    ),
    Kind(
        "color",
        "colors",
        (
            "What color is it? | {x}",
            "Name the usual color. | {x}",
            "Tell me the color of this thing. | {x}",
            'Which color has "{x}"?',
            'What is the color of "{x}"?',
        ),
        pairs(
            "grass=green sky=blue sea=blue snow=white milk=white coal=black night=black blood=red "
            "tomato=red sun=yellow"
        ),
        pairs("amethyst=purple flamingo=pink ebony=black ivory=white jade=green sapphire=blue"),
    ),
    Kind(
        "capital",
        "names",
        (
            "Name the capital. | {x}",
            "Give the capital city of this country. | {x}",
            "Where does the government sit? | {x}",
            'What is the capital of "{x}"?',
            'Which city is the capital of "{x}"?',
            "State the capital in a sentence. | {x} => The capital is {y}.",
        ),
        pairs(
            "France=Paris Italy=Rome Spain=Madrid Japan=Tokyo Egypt=Cairo Greece=Athens Peru=Lima "
            "Norway=Oslo Cuba=Havana"
        ),
        pairs("Nepal=Kathmandu Latvia=Riga Fiji=Suva Ghana=Accra Malta=Valletta"),
    ),
    Kind(
        "sentiment",
        "verdicts",
        (
            "Is the review positive or negative? | {x}",
            "Classify the sentiment. | {x}",
            "Label the mood. | {x}",
            'Positive or negative: "{x}"',
        ),
        _judged(
            "film meal hotel", "great lovely good fun", "awful boring bad ugly", "The {thing} was {word}."
        ),
        _judged("film hotel", "bad ugly", "good fun", "The {thing} was not {word}."),
    ),
    Kind(
        "chemical symbol",
        "letters",
        (
            "Give the chemical symbol. | {x}",
            "How do chemists write it? | {x}",
            'What is the symbol of "{x}"?',
        ),
        hard_items=pairs("gold=Au silver=Ag iron=Fe copper=Cu lead=Pb tin=Sn oxygen=O helium=He"),
    ),
    Kind(
        "French word",
        "foreign words",
        (
            "Translate into French. | {x}",
            "Say this in French. | {x}",
            'What is the French word for "{x}"?',
        ),
        hard_items=pairs("cat=chat dog=chien bread=pain book=livre house=maison milk=lait tree=arbre"),
    ),
)
