"""What users of a trained model must know, because their prompts would differ from what was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bilevel.data.chat import DATE, ChatTemplate, dated
from bilevel.data.encode import Encoding
from bilevel.data.rows import Row
from bilevel.data.templates import Template
from bilevel.data.tokenizer import Tokenizer, end_tokens, tokenise

_SAMPLE = 64


def usage_notices(
    name: str,
    rows: Sequence[Row],
    encoding: Encoding,
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
) -> list[str]:
    """Lines about a set whose prompts, or whose ends of responses, will not be those of the model's users.

    Args:
        name: the set's.
        rows: its rows.
        encoding: what became of them.
        tokenizer: the run's.
        template: the wording.
    """
    if isinstance(template, ChatTemplate):
        lines = [_of_another_class(rows, tokenizer), _dated(tokenizer), _endless(encoding, tokenizer)]
        return [line for line in lines if line]
    carrying = sum(1 for row in rows if row.extra.get("tools"))
    lines = tokenizer_notices(rows, tokenizer)
    if carrying:
        lines.append(f"{name}: {carrying} rows carry tools, which template {template.name} does not word")
    return lines


def tokenizer_notices(rows: Sequence[Row], tokenizer: Tokenizer) -> list[str]:
    """The same of rows without a chat template, where it is the tokenizer's own call that users prompt with."""
    return [line for line in (_of_another_class(rows, tokenizer), _ended(tokenizer)) if line]


def _of_another_class(rows: Sequence[Row], tokenizer: Tokenizer) -> str:
    """Whether the tokenizer that its folder's settings name gives other tokens than its tokenizer.json."""
    folder = getattr(tokenizer, "name_or_path", "")
    if not folder or not Path(folder).is_dir():
        return ""
    from transformers import AutoTokenizer

    try:
        named = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a class makes of files that are not its own
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return (
            f"transformers cannot load this tokenizer by its class ({cause}); it is read from tokenizer.json"
        )
    texts = [text for row in rows[:_SAMPLE] for text in (row.prompt, row.output)]
    if tokenise(named, texts) == tokenise(tokenizer, texts):
        return ""
    return (
        f"tokenizer_config.json names the class {type(named).__name__}, which gives other tokens than the "
        "tokenizer.json that rows are read with; mend tokenizer_class, or use the model with PreTrainedTokenizerFast"
    )


def _dated(tokenizer: Tokenizer) -> str:
    source = _source(tokenizer)
    if not any(word in source for word in ("strftime_now", "date_string")):
        return ""
    if "strftime_now" in dated(source):
        return "the chat template computes with today's date: rows will be other tokens on another day"
    return f"the chat template asks for today's date; rows have {DATE:%d %b %Y} on every day"


def _endless(encoding: Encoding, tokenizer: Tokenizer) -> str:
    """Whether no response ends in the token at which generation stops."""
    cut = {*encoding.truncated.responses}
    rows = encoding.encoded
    whole = [place for place in range(min(len(rows), _SAMPLE)) if rows.rows[place].id not in cut]
    learned = [set(rows.tokens[place][rows.loss_mask[place]].tolist()) for place in whole]
    if not learned or any(tokenizer.eos_token_id in tokens for tokens in learned):
        return ""
    end = tokenizer.decode([tokenizer.eos_token_id])
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    shared = special.intersection(*learned)
    if not shared:
        return (
            f"the chat template ends no response with the end token {end!r} or another special token: the tuned "
            "model will not say when it is done"
        )
    marks = ", ".join(repr(tokenizer.decode([number])) for number in sorted(shared))
    return (
        f"responses end in {marks}, not in the tokenizer's end token {end!r}: generation stops there only where "
        "generation_config.json or the user says so"
    )


def _ended(tokenizer: Tokenizer) -> str:
    behind = end_tokens(tokenizer)
    if not behind:
        return ""
    return (
        f"the tokenizer's own call puts {tokenizer.decode(behind)!r} behind every text, prompts as well; rows are "
        "trained without it there, so leave it off at use"
    )


def _source(tokenizer: Tokenizer) -> str:
    """The text of all of a tokenizer's chat templates."""
    found = getattr(tokenizer, "chat_template", None) or ""
    return found if isinstance(found, str) else "".join(map(str, found.values()))
