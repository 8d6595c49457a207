"""Prompts as tokens: what stands before an answer that is yet to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bilevel.data import ChatTemplate, Rejected, Row, Template, choose_template
from bilevel.data.exchange import last_alone
from bilevel.data.texts import Unusable
from bilevel.evaluation.kind import Encoded, Reading, left_out, too_long

Prompt = list[int]
_ANY_ANSWER = "."
"""Templates word rows with a response; a prompt's tokens never depend on it."""


def template_of(rows: Sequence[Row], reading: Reading) -> tuple[Template | ChatTemplate, str]:
    """The template that words some rows, and a line for the user where it was chosen for them."""
    if isinstance(reading.template, str):
        return choose_template(reading.template, rows, reading.tokenizer)
    return reading.template, ""


def prompts_of(rows: Sequence[Row], reading: Reading, new_tokens: int) -> Encoded:
    """The prompts of rows, each with room for an answer.

    Args:
        rows: whose prompts; their responses are not looked at.
        reading: template, and how many tokens the model reads.
        new_tokens: how many the answer may have.

    Returns:
        The rows, and a list of token ids for each.

    Raises:
        InputError: a prompt leaves no room for the answer, or too many rows cannot be worded.
    """
    template, chosen = template_of(rows, reading)
    asked = [replace(row, output=_ANY_ANSWER) for row in rows]
    worded = template.exchanges(asked, reading.tokenizer, "last")
    kept: list[tuple[Row, Prompt]] = []
    rejected: list[Rejected] = []
    for row, found in zip(rows, worded, strict=True):
        if isinstance(found, Unusable):
            rejected.append(Rejected(row, *found))
        else:
            kept.append((row, last_alone(found).context))
    said = left_out(rejected, len(rows), reading.max_rejected)
    prompts, cut = fitted(
        [row for row, _ in kept], [prompt for _, prompt in kept], [new_tokens] * len(kept), reading
    )
    notices = (chosen, *said, cut)
    return Encoded(tuple(row for row, _ in kept), prompts, tuple(line for line in notices if line))


def fitted(
    rows: Sequence[Row], prompts: Sequence[Prompt], rooms: Sequence[int], reading: Reading
) -> tuple[list[Prompt], str]:
    """Prompts that leave room for what follows them.

    A prompt that is too long loses tokens after its start token, or the task is refused, as the reading says.

    Args:
        rows: whose prompts these are.
        prompts: their tokens.
        rooms: how many tokens follow each.
        reading: what the model reads.

    Returns:
        The prompts, and a line for the user on how many were cut, "" for none.

    Raises:
        InputError: a prompt is too long and is not to be cut, or what follows it leaves no room for any of it.
    """
    limits = [reading.max_length - room for room in rooms]
    long = [n for n, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)) if len(prompt) > limit]
    start = reading.tokenizer.bos_token_id
    hopeless = [n for n in long if limits[n] < (1 if start is None else 2)]
    if long and (reading.too_long == "refuse" or hopeless):
        first = (hopeless or long)[0]
        tokens = len(prompts[first]) + rooms[first]
        raise too_long(rows[first], tokens, len(hopeless or long) - 1, len(rows), reading)
    cut = list(prompts)
    for n in long:
        head = prompts[n][:1] if prompts[n][0] == start else []
        cut[n] = head + prompts[n][len(prompts[n]) - limits[n] + len(head) :]
    said = (
        f"{len(long)} of {len(rows)} prompts lost their beginning (first: {rows[long[0]].id})" if long else ""
    )
    return cut, said


def length_of(row: Row, template: Template | ChatTemplate, reading: Reading) -> int:
    """How many tokens a row has, worded by a template."""
    (found,) = template.exchanges([row], reading.tokenizer, "last")
    return 0 if isinstance(found, Unusable) else sum(map(len, last_alone(found)))
