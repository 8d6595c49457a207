"""Forms of rows: which columns hold question and response, how a file's form is recognised, and written back.

| form | columns |
|---|---|
| chat messages | `messages`: a list of {role, content} |
| ShareGPT conversations | `conversations`: a list of {from, value} |
| Alpaca | `instruction`, `output`, optional `input` |
| Dolly | `instruction`, `response`, optional `context` |
| pairs | `prompt` or `question`, and `completion`, `response` or `answer` |
| plain text | `text` (asked for by name, see `bilevel.data.documents`) |
| passages | `context`, `continuation` (asked for by name) |

A file's form is that of its first row, and all its rows have it. Where the columns of several forms are there, the
first in the table is taken: a conversation holds more than its prompt. `messages` with ShareGPT's keys, and
`conversations` with OpenAI's, are known too. A column `system` or `system_prompt` is the system message in every form,
unless a conversation brings its own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bilevel.data.conversation import Conversation
from bilevel.data.rows import LABELS, Rejected, Row, read_lineage
from bilevel.data.texts import Texts, Unusable, says_system, text_cell, with_system
from bilevel.errors import InputError

LINEAGE = "lineage"
"""Column of a row's lineage, in every form."""

_NO = frozenset({"", "0", "0.0", "false", "nan", "no", "none", "null"})


@dataclass(frozen=True)
class Pair:
    """Columns of text: one question, one response.

    Attributes:
        title: how users are told of it.
        instruction: column of the question.
        output: column of the response.
        input: column of what the question speaks about, "" where the form has none.
    """

    title: str
    instruction: str
    output: str
    input: str = ""

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every row has."""
        return self.instruction, self.output

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that belong to the form, where they are there."""
        return (self.instruction, self.input, self.output) if self.input else self.needed

    def read(self, place: str, record: Mapping[str, Any]) -> tuple[Texts, Unusable | None]:
        """What a record says, and why it cannot be used if so.

        Raises:
            InputError: a column that is not text.
        """
        instruction, output = (text_cell(place, name, record[name]) for name in self.needed)
        context = text_cell(place, self.input, record.get(self.input)) if self.input else ""
        empty = [
            name
            for name, text in ((self.output, output), (self.instruction, instruction))
            if not text.strip()
        ]
        problem = None
        if empty:
            what = "response" if empty[0] == self.output else self.instruction
            problem = Unusable(f"empty {what}", f"write the {empty[0]} or remove the row")
        return Texts(instruction, context, output), problem

    def record(self, row: Row) -> dict[str, Any]:
        """The columns of a row without history."""
        if self.input:
            texts = {self.instruction: row.instruction, self.input: row.input, self.output: row.output}
        else:
            texts = {self.instruction: row.prompt, self.output: row.output}
        return texts if says_system(row) else {"system": row.system, **texts}


@dataclass(frozen=True)
class Plain:
    """One column of text, all of which is learned."""

    title: str = "plain text"
    column: str = "text"

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every row has."""
        return (self.column,)

    columns = needed

    def read(self, place: str, record: Mapping[str, Any]) -> tuple[Texts, Unusable | None]:
        """What a record says, and why it cannot be used if so.

        Raises:
            InputError: a column that is not text.
        """
        text = text_cell(place, self.column, record[self.column])
        problem = None if text.strip() else Unusable("empty text", "write the text or remove the row")
        return Texts("", "", text), problem

    def record(self, row: Row) -> dict[str, Any]:
        """The columns of a row."""
        return {self.column: row.output}


CONVERSATIONS = {
    "messages": Conversation("chat messages", "messages", "role", "content"),
    "messages from": Conversation(
        "chat messages (from, value)", "messages", "from", "value", ("human", "gpt")
    ),
    "conversations": Conversation(
        "ShareGPT conversations", "conversations", "from", "value", ("human", "gpt")
    ),
    "conversations role": Conversation("conversations (role, content)", "conversations", "role", "content"),
}

PAIRS = {
    "alpaca": Pair("Alpaca columns (instruction, input, output)", "instruction", "output", "input"),
    "dolly": Pair("Dolly columns (instruction, context, response)", "instruction", "response", "context"),
    **{
        f"{question}/{answer}": Pair(f"{question}/{answer} columns", question, answer)
        for question in ("prompt", "question")
        for answer in ("completion", "response", "answer")
    },
}

_RECOGNISED: dict[str, Pair | Conversation] = {**CONVERSATIONS, **PAIRS}

FORMS: dict[str, Pair | Conversation | Plain] = {
    **_RECOGNISED,
    "text": Plain(),
    "passage": Pair("passages", "context", "continuation"),
}
"""Known forms by name; those in front are taken before the others, the last two only where they are asked for."""

_KNOWN = (
    "messages, conversations, instruction/output (input), instruction/response (context), or prompt or question "
    "with completion, response or answer"
)


def recognise(place: str, record: Any) -> tuple[str, tuple[str, ...]]:
    """The form of a file by its first row.

    Args:
        place: where the row stands, for errors.
        record: the row's columns.

    Returns:
        A key of `FORMS`, and the keys of other forms whose columns are there too.

    Raises:
        InputError: this is no mapping, or the columns of no form are there.
    """
    _check_mapping(place, record)
    fitting = [name for name, form in PAIRS.items() if set(form.needed) <= set(record)]
    for column in ("conversations", "messages"):
        if column in record:
            same = [name for name, form in CONVERSATIONS.items() if form.column == column]
            fitting.insert(0, max(same, key=lambda name: CONVERSATIONS[name].keys_in(record)))
    if fitting:
        return fitting[0], tuple(fitting[1:])
    nearest = max(_RECOGNISED.values(), key=lambda form: len(set(form.needed) & set(record)))
    missing = [name for name in nearest.needed if name not in record]
    there = ", ".join(map(repr, record)) or "none"
    if len(missing) == len(nearest.needed):
        raise InputError(f"{place}: no known columns (there: {there}); rename yours to {_KNOWN}")
    raise InputError(
        f"{place}: column {missing[0]!r} is missing (there: {there}); add it, or rename yours to {_KNOWN}"
    )


def row_of(place: str, identity: str, name: str, record: Any) -> Row | Rejected:
    """A row from a record of a known form.

    The columns in `LABELS` become labels: a truth value, number or text is kept as text, and "no", "none", "false",
    "0" and null become ""; where that is another value than the column had, `extra` keeps the column too. A column
    `lineage` that `write_rows` wrote becomes the row's lineage. All other columns that do not belong to the form are
    kept in `extra`.

    Args:
        place: where the row stands, for errors.
        identity: the row's id.
        name: the file's form, a key of `FORMS`.
        record: the row's columns.

    Raises:
        InputError: this is no mapping, the form's columns are not there, or do not hold text.
    """
    _check_mapping(place, record)
    form = FORMS[name]
    for column in form.needed:
        if column not in record:
            raise InputError(_missing(place, column, form, record))
    labels = {name: _label(record[name]) for name in LABELS if name in record and _is_label(record[name])}
    extra = {
        name: value
        for name, value in record.items()
        if name not in form.columns
        and (name not in labels or type(value) is not str or labels[name] != value)
    }
    lineage = read_lineage(extra.get(LINEAGE))
    if lineage is not None:
        del extra[LINEAGE]
    source = {form.column: record[form.column]} if isinstance(form, Conversation) else {}
    texts, problem = form.read(place, record)
    texts = with_system(texts, extra)
    row = Row(
        identity,
        texts.instruction,
        texts.input,
        texts.output,
        labels,
        extra,
        texts.system,
        texts.history,
        name,
        source,
        lineage,
        texts.unlearned,
    )
    problem = problem or _broken(record)
    return row if problem is None else Rejected(row, *problem)


def columns_of(row: Row) -> dict[str, Any]:
    """The columns of a row in the form it came in, labels, other columns and lineage included."""
    form = FORMS[row.form]
    if row.history and isinstance(form, Pair):
        form = FORMS["messages"]
    lineage = {} if row.lineage is None else {LINEAGE: row.lineage.record()}
    return {**form.record(row), **row.labels, **row.extra, **lineage}


def _check_mapping(place: str, record: Any) -> None:
    if not isinstance(record, dict):
        raise InputError(
            f"{place}: a row must be a JSON object with columns such as 'instruction' and 'output', "
            f"this is {type(record).__name__}; write one"
        )


def _missing(place: str, column: str, form: Pair | Conversation | Plain, record: Mapping[str, Any]) -> str:
    there = ", ".join(map(repr, record)) or "none"
    message = f"{place}: column {column!r} is missing (there: {there})"
    other = [other.title for other in FORMS.values() if set(other.needed) <= set(record)]
    if other:
        return f"{message}: this row has {other[0]}, the file began with {form.title}; keep one form a file"
    return f"{message}; add it as in the rows before"


def _broken(record: Mapping[str, Any]) -> Unusable | None:
    """Why a row could not be written again: text that UTF-8 cannot hold, in whichever column, or endless nesting."""
    if _unwritable(record) is None:
        return None
    column, error = next((name, e) for name in record if (e := _unwritable({name: record[name]})) is not None)
    if isinstance(error, UnicodeEncodeError):
        return Unusable("broken characters (half of a surrogate pair)", f"write {column!a} again as UTF-8")
    return Unusable("a column that JSON cannot hold", f"mend or remove {column!a} ({error})")


def _unwritable(record: Mapping[str, Any]) -> Exception | None:
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError) as error:
        return error
    return None


def _is_label(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _label(value: Any) -> str:
    if value is True:
        return "yes"
    text = "" if value is None else str(value)
    return "" if text.strip().lower() in _NO else text
