"""The tokenizer's own chat template, with targets found by the prefix method."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise, takewhile
from typing import Any

import jinja2

from bilevel.data.exchange import Exchange, Targets, without_unlearned
from bilevel.data.rows import Row
from bilevel.data.texts import Unusable
from bilevel.data.tokenizer import Tokenizer, tokenise
from bilevel.errors import InputError

DATE = datetime(2024, 7, 26)
"""What Llama 3's templates fall back to: with today's date, the same rows would be other tokens tomorrow."""

_ASKS_FOR_DATE = re.compile(r"""strftime_now\(\s*('[^'\n]*'|"[^"\n]*")\s*\)""")
_REMEDY = "take another template (plain), or mend the row"


@dataclass(frozen=True)
class ChatTemplate:
    """Conversations in the wording of the tokenizer's chat template, a Jinja template run in its sandbox.

    >>> from bilevel.data import train_tokenizer
    >>> tokenizer = train_tokenizer(["a"], 259)
    >>> tokenizer.chat_template = (
    ...     "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    ...     "{% if add_generation_prompt %}[assistant] {% endif %}"
    ... )
    >>> ((exchange,),) = CHAT.exchanges([Row("a:1", "Hi.", "", "Hello.")], tokenizer)
    >>> tokenizer.decode(exchange.context), tokenizer.decode(exchange.target)
    ('[user] Hi. [assistant] ', 'Hello. ')

    A response's target is the difference of two renderings: the conversation up to the response with the generation
    prompt, which is what generation sees, and the conversation with the response. Stock templates lack the mark that
    assistant masks are made from, hence this method.
    """

    name: str = "chat"

    def exchanges(
        self, rows: Sequence[Row], tokenizer: Tokenizer, targets: Targets = "all"
    ) -> list[list[Exchange] | Unusable]:
        """Tokens of rows, or why one has none.

        Rows are refused that the template refuses or leaves text of out, in which it words earlier turns otherwise
        once later ones follow (so that one rendering is not the other's beginning), and that name special tokens.
        """
        special = _special_tokens(tokenizer)
        renderings = [_renderings(row, tokenizer, targets, special) for row in rows]
        good = [texts for texts in renderings if not isinstance(texts, Unusable)]
        tokens = iter(tokenise(tokenizer, [text for texts in good for text in texts], special=True))
        found: list[list[Exchange] | Unusable] = []
        for row, texts in zip(rows, renderings, strict=True):
            if isinstance(texts, Unusable):
                found.append(texts)
                continue
            pieces = _pieces([next(tokens) for _ in texts], texts, tokenizer)
            exchanges = [Exchange(*pieces[k : k + 2]) for k in range(0, len(pieces), 2)]
            if all(context and target for context, target in exchanges):
                found.append(without_unlearned(exchanges, row.unlearned) if targets == "all" else exchanges)
            else:
                found.append(Unusable("no response token", _REMEDY))
        return found


CHAT = ChatTemplate()


def has_chat_template(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def check_chat_template(tokenizer: Tokenizer | None) -> None:
    """Refuses a tokenizer without a chat template.

    Raises:
        InputError: the tokenizer has none, or will yet be trained.
    """
    if tokenizer is None or not has_chat_template(tokenizer):
        raise InputError(
            "the tokenizer has no chat template; take template plain or alpaca, or a tokenizer folder that holds "
            "chat_template.jinja"
        )


def messages_of(row: Row) -> list[dict[str, str]]:
    """A row as chat messages, its response last."""
    told = [] if not row.system.strip() else [{"role": "system", "content": row.system}]
    for question, response in (*row.history, (row.prompt, row.output)):
        told += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return told


def _renderings(
    row: Row, tokenizer: Tokenizer, targets: Targets, special: frozenset[str]
) -> list[str] | Unusable:
    """Texts of which each is the next one's beginning: before and after each response."""
    messages = messages_of(row)
    for message in messages:
        named = [token for token in special if token in message["content"]]
        if named:
            return Unusable(
                f"the text names the special token {named[0]!r}", "write it otherwise, or remove the row"
            )
    responses = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    texts = []
    try:
        options = _options(row)
    except ValueError as error:
        return Unusable(f"unusable tools ({error})", "write a list of JSON schemas, or remove the row")
    try:
        for k in responses if targets == "all" else responses[-1:]:
            texts.append(_render(tokenizer, messages[:k], options, add_generation_prompt=True))
            texts.append(_render(tokenizer, messages[: k + 1], options, add_generation_prompt=False))
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return Unusable(f"the chat template refuses it ({' '.join(str(error).split())[:120]})", _REMEDY)
    for prompt, answered in zip(texts[::2], texts[1::2], strict=True):
        if not answered.startswith(prompt):
            same = sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, answered, strict=False))
            )
            opened = prompt[same:]
            return Unusable(
                f"the chat template ends what generation sees in {opened[:40]!r}, and words no written response so "
                "that it begins with it",
                "take another template (plain), or one that opens no response",
            )
    if not all(later.startswith(earlier) for earlier, later in pairwise(texts)):
        return Unusable(
            "the chat template words a turn otherwise once later ones follow, so that no prefix is left",
            "learn the last response of each conversation alone (targets last), or take another template (plain)",
        )
    rendered = _without_blanks(texts[-1])
    for message in messages:
        if _without_blanks(message["content"]) not in rendered:
            return Unusable(f"the chat template leaves out text of the {message['role']}", _REMEDY)
    return texts


def dated(template: str) -> str:
    """A chat template with one date in place of today's, wherever it asks for it in a format of its own.

    >>> dated("Today is {{ strftime_now('%d %B %Y') }}.")
    'Today is {{ "26 July 2024" }}.'
    """
    return _ASKS_FOR_DATE.sub(lambda found: json.dumps(DATE.strftime(found[1][1:-1])), template)


def tools_of(row: Row) -> list[Any]:
    """The tools that a row's column `tools` offers; [] without one.

    Raises:
        ValueError: the column holds no list, nor one as JSON.
    """
    found = row.extra.get("tools")
    if isinstance(found, str) and found.strip():
        found = json.loads(found)
    if found and not isinstance(found, list):
        raise ValueError(f"tools must be a list, this is {type(found).__name__}")
    return _stated(found) if found else []


def _options(row: Row) -> dict[str, Any]:
    """What a row's columns `tools` and `chat_template_kwargs` tell the template."""
    told = row.extra.get("chat_template_kwargs")
    options = (
        {name: value for name, value in told.items() if value is not None} if isinstance(told, dict) else {}
    )
    tools = tools_of(row)
    return options | {"tools": tools} if tools else options


def _stated(value: Any) -> Any:
    """Without nulls: a table gives every tool the keys that any tool has."""
    if isinstance(value, dict):
        return {name: _stated(item) for name, item in value.items() if item is not None}
    return [_stated(item) for item in value] if isinstance(value, list) else value


def _render(
    tokenizer: Tokenizer,
    messages: list[dict[str, str]],
    options: dict[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    fixed = {
        "tokenize": False,
        "add_generation_prompt": add_generation_prompt,
        "date_string": DATE.strftime("%d %b %Y"),
        "chat_template": dated(tokenizer.get_chat_template(tools=options.get("tools"))),
    }
    return tokenizer.apply_chat_template(messages, **options | fixed)


def _pieces(tokens: list[list[int]], texts: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """What each text adds to the one before it, as tokens.

    Where a token would reach over such a border, the additions are tokenised apart: the tokens before a response
    must be those that generation sees.
    """
    if all(later[: len(earlier)] == earlier for earlier, later in pairwise(tokens)):
        return [tokens[0], *(later[len(earlier) :] for earlier, later in pairwise(tokens))]
    added = [texts[0], *(later[len(earlier) :] for earlier, later in pairwise(texts))]
    return tokenise(tokenizer, added, special=True)


def _special_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(str(token) for token in added if token.special)


def _without_blanks(text: str) -> str:
    return "".join(text.split())
