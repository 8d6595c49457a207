"""What a run set out to do, in `run.json`: written before training, so that unfinished runs can be described too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically

FILE = "run.json"


@dataclass(frozen=True)
class SetFacts:
    """One set of rows.

    Attributes:
        source: file, hub name, or what made the rows.
        rows: how many are used.
    """

    source: str
    rows: int


@dataclass(frozen=True)
class RunFacts:
    """What a run starts from and what it will do.

    Attributes:
        experiment: its name.
        methods: those that it runs, in this order.
        main: the method whose weights, selection and model the folder keeps.
        sets: sets of rows by name (`pool`, `validation`, `test`).
        model: folder or hub name that the model was read from, "" for random weights.
        parameters: how many numbers the model has, those of an adapter and of its base together.
        trained: how many of them are trained.
        prompt: how a prompt is worded, with `{instruction}` and `{input}` for a row's texts; "" where the tokenizer's
            chat template words it.
        notices: lines for the user about what was left out, cut, shared or recognised.
    """

    experiment: str = ""
    methods: Sequence[str] = ()
    main: str = ""
    sets: Mapping[str, SetFacts] = field(default_factory=dict)
    model: str = ""
    parameters: int = 0
    trained: int = 0
    prompt: str = ""
    notices: Sequence[str] = ()


def write_facts(folder: Path, facts: RunFacts) -> None:
    """Writes `run.json`."""
    write_atomically(folder / FILE, json.dumps(asdict(facts), indent=2, ensure_ascii=False) + "\n")


def read_facts(folder: Path) -> RunFacts:
    """Reads `run.json`.

    Args:
        folder: a run folder.

    Returns:
        The facts, all of them empty where there is no file.

    Raises:
        InputError: the file is broken.
    """
    path = folder / FILE
    if not path.exists():
        return RunFacts()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        sets = {name: SetFacts(**facts) for name, facts in raw.pop("sets").items()}
        return RunFacts(sets=sets, **raw)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{path}: no facts about a run ({error!r}); remove the file") from error
