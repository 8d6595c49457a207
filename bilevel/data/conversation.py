"""Rows whose texts stand in one column, as a list of turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bilevel.data.rows import Row
from bilevel.data.texts import Texts, Unusable, says_system, texts_of, with_system
from bilevel.errors import InputError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}
"""Words for who speaks, in lower case, and the role that they mean."""


LEARNED = ("weight", "training", "train", "loss")
"""Keys by which the field's tools say whether an assistant's turn is learned: 0 or false, 1 or true."""

SAID = (
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("train_detail", "audio", "images", "videos", "refusal"),
)
"""Keys that hold more of what a turn says, or which part of it is learned."""


class Turn(NamedTuple):
    """A turn of a conversation.

    Attributes:
        word: for who speaks, in lower case.
        text: what is said.
        learned: whether it is to be learned, of an assistant's turn.
        problem: why it cannot be used as it is, None where it can.
    """

    word: str
    text: str
    learned: bool = True
    problem: Unusable | None = None


@dataclass(frozen=True)
class Conversation:
    """One column that holds a list of turns.

    Attributes:
        title: how users are told of it.
        column: its name.
        role: key of who speaks in a turn.
        content: key of what is said.
        words: what user and assistant are called where turns are made anew.
    """

    title: str
    column: str
    role: str
    content: str
    words: tuple[str, str] = ("user", "assistant")

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns that every row has."""
        return (self.column,)

    columns = needed

    def keys_in(self, record: Mapping[str, Any]) -> bool:
        """Whether the first turn of a record has this form's keys."""
        turns = record[self.column]
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
            return False
        return {self.role, self.content} <= set(turns[0])

    def unread_keys(self, record: Mapping[str, Any]) -> set[str]:
        """Keys of a usable record's turns that say something and are not read."""
        read = {self.role, self.content, *LEARNED}
        turns = record[self.column] or ()
        return {key for turn in turns for key, value in turn.items() if value and key not in read}

    def read(self, place: str, record: Mapping[str, Any]) -> tuple[Texts, Unusable | None]:
        """What a record says, and why it cannot be used if so; turns after the last response say nothing.

        Raises:
            InputError: no list of turns, a turn without its keys, or content that is not text.
        """
        found = self._conversation(self._turns(place, record[self.column]))
        return (Texts("", "", ""), found) if isinstance(found, Unusable) else (found, None)

    def ends_unanswered(self, record: Mapping[str, Any]) -> bool:
        """Whether turns of a usable record follow its last response."""
        return ROLES[self._turns("", record[self.column])[-1].word] == "user"

    def record(self, row: Row) -> dict[str, Any]:
        """The column of a row: as it was read where it still says what the row says, else made anew."""
        if self.column in row.source:
            read, problem = self.read(row.id, row.source)
            if problem is not None or with_system(read, row.extra) == texts_of(row):
                return {self.column: row.source[self.column]}
        turns = list[dict[str, Any]]()
        if not says_system(row):
            turns.append({self.role: "system", self.content: row.system})
        for number, exchange in enumerate((*row.history, (row.prompt, row.output))):
            question, answer = (
                {self.role: word, self.content: text} for word, text in zip(self.words, exchange, strict=True)
            )
            turns += [question, answer | {LEARNED[0]: 0} if number in row.unlearned else answer]
        return {self.column: turns}

    def _conversation(self, turns: list[Turn]) -> Texts | Unusable:
        system, told = "", list[Turn]()
        for turn in turns:
            role = ROLES.get(turn.word)
            if role is None:
                known = ", ".join(ROLES)
                return Unusable(f"unknown role {turn.word!r}", f"name it one of {known}, or remove the row")
            if turn.problem is not None:
                return turn.problem
            if role != "system":
                told.append(turn._replace(word=role))
            elif told or system:
                return Unusable(
                    "a system message after the first turn", "move it to the front or remove the row"
                )
            else:
                system = turn.text
        while told and told[-1].word == "user":
            told.pop()
        if not told:
            return Unusable("no assistant turn", "add a response or remove the row")
        for number, (role, text, *_) in enumerate(told):
            if role != ("user", "assistant")[number % 2]:
                reason = f"two {role} turns in a row" if number else "the first turn is the assistant's"
                return Unusable(reason, "let user and assistant take turns, or remove the row")
            if not text.strip():
                what = "response" if role == "assistant" else "question"
                return Unusable(f"empty {what}", f"write the {what} or remove the row")
        pairs = [(asked.text, said.text) for asked, said in zip(told[::2], told[1::2], strict=True)]
        unlearned = [number for number, said in enumerate(told[1::2]) if not said.learned]
        while unlearned and unlearned[-1] == len(pairs) - 1:  # nothing that is learned comes after it
            unlearned.pop()
            pairs.pop()
        if not pairs:
            return Unusable("no response to be learned", "mark one with weight 1 or remove the row")
        return Texts(pairs[-1][0], "", pairs[-1][1], system, tuple(pairs[:-1]), tuple(unlearned))

    def _turns(self, place: str, value: Any) -> list[Turn]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise InputError(
                f"{place}: column {self.column!r} must be a list of turns, this is {type(value).__name__}; "
                f'write it as [{{"{self.role}": ..., "{self.content}": ...}}, ...]'
            )
        turns = []
        for number, turn in enumerate(value, start=1):
            where = f"{place}: turn {number} of {self.column!r}"
            if not isinstance(turn, dict) or not {self.role, self.content} <= set(turn):
                there = ", ".join(map(repr, turn)) if isinstance(turn, dict) else type(turn).__name__
                raise InputError(
                    f"{where} needs the keys {self.role!r} and {self.content!r} (there: {there or 'none'}); "
                    "write both"
                )
            content, problem = _content(turn[self.content])
            if not isinstance(content, str):
                kind = type(content).__name__
                raise InputError(
                    f"{where}: {self.content!r} must be text, this is {kind}; write it as a string"
                )
            learned, unclear = _is_learned(turn)
            problem = problem or unclear or _more_said(turn)
            turns.append(Turn(str(turn[self.role]).strip().lower(), content, learned, problem))
        return turns


def _content(value: Any) -> tuple[Any, Unusable | None]:
    """What is said: a text, or parts of which each holds text, which templates write one after another."""
    if not isinstance(value, list):
        return "" if value is None else value, None
    texts = [
        part["text"]
        for part in value
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    ]
    if len(texts) == len(value):
        return "".join(texts), None
    return "", Unusable("a turn of parts that are no text", "write it as text or remove the row")


def _is_learned(turn: Mapping[str, Any]) -> tuple[bool, Unusable | None]:
    marks = {key: turn[key] for key in LEARNED if turn.get(key) is not None}
    for key, value in marks.items():
        if value not in (0, 1):  # false and true are these, too
            return True, Unusable(
                f"a turn with the {key} {value!r}", "write 0 (not learned) or 1 (learned), or remove the row"
            )
    return all(marks.values()), None


def _more_said(turn: Mapping[str, Any]) -> Unusable | None:
    said = next((key for key in SAID if turn.get(key)), None)
    if said is None:
        return None
    return Unusable(
        f"a turn's {said} cannot be learned",
        "write what the model is to say into the content, as its template words it, or remove the row",
    )
