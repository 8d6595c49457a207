"""Rows whose texts stand in one column, as a list of turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bilevel.data.rows import Row
from bilevel.data.texts import Texts, Unusable, says_system, texts_of, with_system
from bilevel.errors import InputError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model"), "assistant"),
}
"""Words for who speaks, in lower case, and the role that they mean."""


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
        return isinstance(turns, list) and turns != [] and {self.role, self.content} <= set(turns[0])

    def read(self, place: str, record: Mapping[str, Any]) -> tuple[Texts, Unusable | None]:
        """What a record says, and why it cannot be used if so; turns after the last response say nothing.

        Raises:
            InputError: no list of turns, a turn without its keys, or content that is not text.
        """
        found = self._conversation(self._turns(place, record[self.column]))
        return (Texts("", "", ""), found) if isinstance(found, Unusable) else (found, None)

    def ends_unanswered(self, record: Mapping[str, Any]) -> bool:
        """Whether turns of a usable record follow its last response."""
        (*_, (word, _)) = self._turns("", record[self.column])
        return ROLES[word] == "user"

    def record(self, row: Row) -> dict[str, Any]:
        """The column of a row: as it was read where it still says what the row says, else made anew."""
        if self.column in row.source:
            read, problem = self.read(row.id, row.source)
            if problem is not None or with_system(read, row.extra) == texts_of(row):
                return {self.column: row.source[self.column]}
        exchanges = (*row.history, (row.prompt, row.output))
        turns = [turn for exchange in exchanges for turn in zip(self.words, exchange, strict=True)]
        if not says_system(row):
            turns.insert(0, ("system", row.system))
        return {self.column: [{self.role: word, self.content: text} for word, text in turns]}

    def _conversation(self, turns: list[tuple[str, str]]) -> Texts | Unusable:
        system, told = "", list[tuple[str, str]]()
        for word, text in turns:
            role = ROLES.get(word)
            if role is None:
                known = ", ".join(ROLES)
                return Unusable(f"unknown role {word!r}", f"name it one of {known}, or remove the row")
            if role != "system":
                told.append((role, text))
            elif told or system:
                return Unusable(
                    "a system message after the first turn", "move it to the front or remove the row"
                )
            else:
                system = text
        while told and told[-1][0] == "user":
            told.pop()
        if not told:
            return Unusable("no assistant turn", "add a response or remove the row")
        for number, (role, text) in enumerate(told):
            if role != ("user", "assistant")[number % 2]:
                reason = f"two {role} turns in a row" if number else "the first turn is the assistant's"
                return Unusable(reason, "let user and assistant take turns, or remove the row")
            if not text.strip():
                what = "response" if role == "assistant" else "question"
                return Unusable(f"empty {what}", f"write the {what} or remove the row")
        said = [text for _, text in told]
        pairs = tuple(zip(said[::2], said[1::2], strict=True))
        return Texts(pairs[-1][0], "", pairs[-1][1], system, pairs[:-1])

    def _turns(self, place: str, value: Any) -> list[tuple[str, str]]:
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
            content = turn[self.content]
            if not isinstance(content, str | None):
                kind = type(content).__name__
                raise InputError(
                    f"{where}: {self.content!r} must be text, this is {kind}; write it as a string"
                )
            turns.append((str(turn[self.role]).strip().lower(), content or ""))
        return turns
