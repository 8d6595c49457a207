"""Rows that are longer than the limit: what is cut, and what the user is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from bilevel.data.exchange import Exchange
from bilevel.data.texts import Unusable

Truncation = Literal["response_first", "keep_start", "drop"]
"""What happens to rows that are too long; see `fit`."""


class Fitted(NamedTuple):
    """A row's tokens within the limit, and what was cut.

    Attributes:
        tokens: token ids.
        targets: which of them are to be predicted.
        length: tokens before the cut.
        prompt_cut: tokens of a prompt are missing.
        response_cut: the end of the last response is missing.
        turns_lost: an earlier response, or a part of it, is no longer a target.
    """

    tokens: list[int]
    targets: Bool[np.ndarray, " tokens"]
    length: int
    prompt_cut: bool = False
    response_cut: bool = False
    turns_lost: bool = False


def fit(
    exchanges: Sequence[Exchange], max_length: int, start: int | None, policy: Truncation
) -> Fitted | Unusable:
    """Cuts a row to a length.

    `response_first` keeps the last response whole and loses tokens at the start of the row, but never its start token
    nor the last prompt's last token, which says that the response follows. Where the last response does not fit even
    so, its end is cut, and with it the end token: a cut response must not teach where to stop. An earlier response
    whose beginning or whole prompt was lost is read, but no longer learned. `keep_start` keeps the first tokens, and
    refuses a row without a target among them. `drop` refuses every row that is too long.

    Args:
        exchanges: the row.
        max_length: the most tokens it may have, at least 3.
        start: the start token's id, None without one.
        policy: what to cut.
    """
    parts = [part for exchange in exchanges for part in exchange]
    tokens = [token for part in parts for token in part]
    targets = np.repeat(np.arange(len(parts)) % 2 == 1, [len(part) for part in parts])
    if len(tokens) <= max_length:
        return Fitted(tokens, targets, len(tokens))
    remedy = "raise the length limit, or shorten or remove the row"
    if policy == "drop":
        return Unusable(f"longer than {max_length} tokens", remedy)
    borders = [0, *accumulate(map(len, parts))]
    if policy == "keep_start":
        if not targets[:max_length].any():
            return Unusable(
                f"no response token within {max_length} tokens", f"{remedy}; or take response_first"
            )
        return Fitted(
            tokens[:max_length],
            targets[:max_length],
            len(tokens),
            prompt_cut=bool(np.any(~targets[max_length:])),
            response_cut=True,
            turns_lost=borders[-3] > max_length if len(exchanges) > 1 else False,
        )
    return _response_first(tokens, targets, borders, max_length, int(tokens[0] == start))


def _response_first(
    tokens: list[int], targets: Bool[np.ndarray, " tokens"], borders: list[int], max_length: int, head: int
) -> Fitted:
    answer = borders[-2]
    # A row whose prompt is its start token alone has no other token to keep before its response.
    room = max_length - head - min(answer - head, 1)
    kept_end = min(len(tokens), answer + room)
    first = max(head, kept_end - (max_length - head))
    kept = targets.copy()
    earlier = zip(borders[1:-2:2], borders[2:-2:2], strict=True)
    begun = [(begin, end) for begin, end in earlier if head < first >= begin]
    for begin, end in begun:
        kept[begin:end] = False
    return Fitted(
        tokens[:head] + tokens[first:kept_end],
        np.concatenate([kept[:head], kept[first:kept_end]]),
        len(tokens),
        prompt_cut=bool(np.any(~targets[head:first])),
        response_cut=kept_end < len(tokens),
        turns_lost=bool(begun),
    )


@dataclass(frozen=True)
class Truncated:
    """Ids of rows that did not fit, by what they lost.

    Attributes:
        prompts: prompts, or parts of them.
        responses: the end of their last response.
        turns: earlier responses of a conversation.
        longest: tokens of the longest row.
    """

    prompts: tuple[str, ...] = ()
    responses: tuple[str, ...] = ()
    turns: tuple[str, ...] = ()
    longest: int = 0

    @property
    def warning(self) -> str:
        """One line for the user, "" where everything fits."""
        lost = [
            f"{len(ids)} rows {what}"
            for ids, what in (
                (self.prompts, "lost part of their prompt"),
                (self.responses, "the end of their response"),
                (self.turns, "an earlier response"),
            )
            if ids
        ]
        if not lost:
            return ""
        first = (self.prompts + self.responses + self.turns)[0]
        return (
            f"{', '.join(lost)} to the length limit (first: {first}); the longest row has {self.longest} tokens, "
            "raise the limit to keep them whole"
        )
