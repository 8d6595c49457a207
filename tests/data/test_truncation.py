"""What rows that are too long lose."""

import numpy as np
import pytest

from bilevel.data.exchange import Exchange
from bilevel.data.texts import Unusable
from bilevel.data.truncation import Fitted, Truncated, fit

START = 1
ONE = [Exchange([START, 10, 11, 12], [20, 21, 2])]
TWO = [Exchange([START, 10, 11], [20, 2]), Exchange([12, 13], [22, 23, 2])]


def shown(fitted: Fitted | Unusable) -> tuple[list[int], list[int], str]:
    """Tokens, targets, and what was cut: p(rompt), r(esponse), t(urns)."""
    assert isinstance(fitted, Fitted)
    cut = (fitted.prompt_cut, fitted.response_cut, fitted.turns_lost)
    targets = [token for token, target in zip(fitted.tokens, fitted.targets, strict=True) if target]
    return fitted.tokens, targets, "".join(np.array(["p", "r", "t"])[list(cut)])


@pytest.mark.parametrize(
    ("exchanges", "length", "tokens", "targets", "cut"),
    [
        (ONE, 7, [1, 10, 11, 12, 20, 21, 2], [20, 21, 2], ""),
        (ONE, 6, [1, 11, 12, 20, 21, 2], [20, 21, 2], "p"),
        (ONE, 5, [1, 12, 20, 21, 2], [20, 21, 2], "p"),
        (ONE, 4, [1, 12, 20, 21], [20, 21], "pr"),
        (ONE, 3, [1, 12, 20], [20], "pr"),
        (TWO, 10, [1, 10, 11, 20, 2, 12, 13, 22, 23, 2], [20, 2, 22, 23, 2], ""),
        (TWO, 9, [1, 11, 20, 2, 12, 13, 22, 23, 2], [20, 2, 22, 23, 2], "p"),
        # Nothing of its question is left, then not even all of the response: neither is learned.
        (TWO, 8, [1, 20, 2, 12, 13, 22, 23, 2], [22, 23, 2], "pt"),
        (TWO, 7, [1, 2, 12, 13, 22, 23, 2], [22, 23, 2], "pt"),
        (TWO, 5, [1, 13, 22, 23, 2], [22, 23, 2], "pt"),
        (TWO, 4, [1, 13, 22, 23], [22, 23], "prt"),
        ([Exchange([START], [20, 21, 2])], 3, [1, 20, 21], [20, 21], "r"),
        ([Exchange([10, 11], [20, 21, 2])], 3, [11, 20, 21], [20, 21], "pr"),
    ],
)
def test_the_last_response_comes_first(exchanges, length, tokens, targets, cut) -> None:
    assert shown(fit(exchanges, length, START, "response_first")) == (tokens, targets, cut)


@pytest.mark.parametrize(
    ("exchanges", "length", "targets", "cut"),
    [(ONE, 7, [20, 21, 2], ""), (ONE, 6, [20, 21], "r"), (TWO, 6, [20, 2], "pr"), (TWO, 4, [20], "prt")],
)
def test_the_start_can_be_kept(exchanges, length, targets, cut) -> None:
    whole = [token for exchange in exchanges for part in exchange for token in part]
    assert shown(fit(exchanges, length, START, "keep_start")) == (whole[:length], targets, cut)


def test_rows_can_be_refused() -> None:
    found = fit(ONE, 4, START, "keep_start")
    assert isinstance(found, Unusable)
    assert found.reason == "no response token within 4 tokens"
    assert "response_first" in found.remedy
    found = fit(ONE, 6, START, "drop")
    assert isinstance(found, Unusable)
    assert found.reason == "longer than 6 tokens"
    assert shown(fit(ONE, 7, START, "drop"))[2] == ""


@pytest.mark.parametrize("policy", ["response_first", "keep_start"])
@pytest.mark.parametrize("start", [START, None])
def test_no_row_is_longer_and_each_has_a_target_after_a_token(policy, start) -> None:
    for length in range(3, 12):
        for exchanges in (ONE, TWO):
            found = fit(exchanges, length, start, policy)
            if isinstance(found, Unusable):
                continue
            assert len(found.tokens) == len(found.targets) == min(length, found.length)
            assert found.targets.any()
            assert not found.targets[0]


def test_what_was_cut_is_said_with_counts() -> None:
    assert Truncated(longest=9).warning == ""
    assert Truncated(("a:1", "a:2"), (), ("a:2",), 9).warning == (
        "2 rows lost part of their prompt, 1 rows an earlier response to the length limit (first: a:1); "
        "the longest row has 9 tokens, raise the limit to keep them whole"
    )
