"""Lazy greedy selection beside the plain loop, pick for pick."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from bilevel.curate import pick_diverse, token_terms, word_terms

WORDS = ["red", "blue", "fox", "hen", "old", "new", "runs", "sits", "far", "near"]


def plain_loop(complexity, terms, count, decay, weights=None) -> tuple[list[int], list[float]]:
    """All scores anew for every pick, the weights of the picked row's terms lowered: the definition."""
    dense, worth = terms.toarray(), np.ones(terms.shape[1]) if weights is None else weights.copy()
    left, picked, diversity = np.isfinite(complexity), [], []
    for _ in range(count):
        gains = dense @ worth
        scores = np.where(left, np.nan_to_num(complexity) * gains, 0.0)
        best = int(np.argmax(scores))
        if scores[best] <= 0:
            break
        picked.append(best)
        diversity.append(gains[best])
        left[best] = False
        worth[dense[best] > 0] *= decay
    return picked, diversity


def problem(seed: int, rows: int = 60, twins: int = 10):
    """Rows of random words, some twice over, and their complexity."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(rows - twins)]
    texts += texts[:twins]
    complexity = rng.uniform(0.2, 1.0, rows)
    complexity[-twins:] = complexity[:twins]  # ties
    return complexity, word_terms(texts).matrix


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_picks_are_the_plain_loops_one_for_one(decay, seed):
    complexity, terms = problem(seed)
    for count in (12, 60, 90):  # more than there are rows, too
        picks = pick_diverse(complexity, terms, count, decay)
        expected, diversity = plain_loop(complexity, terms, count, decay)
        assert picks.ids.tolist() == expected
        np.testing.assert_allclose(picks.diversity, diversity, rtol=1e-12)
        np.testing.assert_allclose(picks.scores, complexity[expected] * diversity, rtol=1e-12)
        assert len(set(expected)) == len(expected)
        assert picks.exhausted == (len(expected) if len(expected) < count else None)


def test_rows_of_sparse_numbers_with_ties_are_picked_as_by_the_plain_loop():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # Quarters and eighths: every sum is exact, so that ties are ties in any order of summation.
        dense = rng.choice([0.0, 0.25, 0.5], (40, 12), p=[0.7, 0.2, 0.1])
        complexity = rng.choice([0.5, 0.75, 1.0], 40)
        for decay in (0.0, 0.5, 1.0):
            picks = pick_diverse(complexity, csr_matrix(dense), 40, decay)
            assert picks.ids.tolist() == plain_loop(complexity, csr_matrix(dense), 40, decay)[0]


def test_equal_scores_go_to_the_lowest_number_whatever_the_order_of_their_terms():
    values = [0.1, 0.2, 0.3, 0.7, 1e-9]
    forward = csr_matrix((values + values[::-1], ([0] * 5 + [1] * 5, [*range(5), *range(4, -1, -1)])), (2, 5))
    permuted = csr_matrix(np.stack([values, np.roll(values, 2)]))
    for terms in (forward, permuted):
        assert pick_diverse(np.ones(2), terms, 1).ids.tolist() == [0]


def test_coverage_that_is_used_up_ends_the_picks_and_says_where():
    terms = csr_matrix(np.array([[0.5, 0.5, 0, 0]] * 4 + [[0, 0, 0.5, 0.5]]))
    hard = pick_diverse(np.ones(5), terms, 4, decay=0.0)
    assert (hard.ids.tolist(), hard.exhausted) == ([0, 4], 2)
    soft = pick_diverse(np.ones(5), terms, 5, decay=0.1)
    assert (soft.ids.tolist(), soft.exhausted) == ([0, 4, 1, 2, 3], None)
    nothing = pick_diverse(np.zeros(5), terms, 2)
    assert (len(nothing.ids), nothing.exhausted) == (0, 0)
    assert pick_diverse(np.ones(3), word_terms(["", "1", "?"]).matrix, 2).exhausted == 0  # no word at all


def test_rows_that_were_not_measured_are_not_picked():
    terms = word_terms(["red fox", "blue hen", "old ox"]).matrix
    picks = pick_diverse(np.array([np.nan, 0.5, np.inf]), terms, 3)
    assert (picks.ids.tolist(), picks.exhausted) == ([1], 1)


def test_weights_go_on_from_one_selection_to_the_next():
    complexity, terms = problem(3)
    first = pick_diverse(complexity, terms, 10, 0.5)
    second = pick_diverse(complexity, terms, 10, 0.5, weights=first.weights)
    assert second.ids.tolist() == plain_loop(complexity, terms, 10, 0.5, first.weights)[0]
    used = np.bincount(terms[first.ids].indices, minlength=terms.shape[1])
    np.testing.assert_array_equal(first.weights, 0.5**used)
    untouched = pick_diverse(complexity, terms, 10, 0.5)
    assert untouched.ids.tolist() == first.ids.tolist()


def test_diversity_favours_long_rows_unless_it_is_divided_by_their_length():
    texts = ["red", "red fox sits near old blue hen and new dog", "green"]
    plain = pick_diverse(np.ones(3), word_terms(texts, 1).matrix, 1)
    fair = pick_diverse(np.array([1.0, 1.0, 1.1]), word_terms(texts, 1).matrix, 1, lengths="root")
    assert plain.ids.tolist() == [1]
    assert fair.ids.tolist() == [2]
    assert fair.diversity[0] == pytest.approx(1.0)


def test_a_selection_that_cannot_be_is_refused():
    complexity, terms = problem(0)
    for given, message in (
        ({"decay": 1.5}, r"decay must be in \[0, 1\], not 1.5"),
        ({"count": -1}, "count must be 0 or more, not -1"),
        ({"complexity": complexity[:3]}, "complexity must be one score for each of 60 rows"),
        ({"weights": np.ones(2)}, "weights must be one weight for each of"),
        ({"complexity": -complexity}, "complexity must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            pick_diverse(**{"complexity": complexity, "terms": terms, "count": 5, **given})


def test_terms_are_those_of_scikit_learn_and_of_token_ids_alike():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 30)
    tokens = rng.integers(0, 20, (30, 12))
    begin = rng.integers(0, 4, 30)[:, None]
    inside = (np.arange(12) >= begin) & (np.arange(12) < begin + lengths[:, None])
    texts = [" ".join(f"w{t}" for t in row[some]) for row, some in zip(tokens, inside, strict=True)]
    by_words, by_tokens = word_terms(texts), token_terms(tokens, inside)
    assert by_words.matrix.shape == by_tokens.matrix.shape
    # Columns are in another order, so that products of rows are compared.
    expected, found = ((terms.matrix @ terms.matrix.T).toarray() for terms in (by_words, by_tokens))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    complexity = rng.uniform(0.5, 1, 30)
    picks = [pick_diverse(complexity, terms.matrix, 30).ids.tolist() for terms in (by_words, by_tokens)]
    assert picks[0] == picks[1]
    # How many of other rows hold a term: what weights are carried by.
    some = np.array([3, 5, 7])
    holders = np.asarray((by_tokens.matrix[some] > 0).sum(axis=0)).ravel()
    np.testing.assert_array_equal(by_tokens.occurs((tokens[some], inside[some])), holders)
    assert sorted(by_words.occurs([texts[row] for row in some]).tolist()) == sorted(holders.tolist())
    assert by_tokens.occurs((tokens[some] + 100, inside[some])).sum() == 0


def test_words_keep_what_scikit_learn_keeps():
    matrix = word_terms(["7", "The fox", "the FOX sat"]).matrix
    assert matrix[0].nnz == 0  # digits alone are no word
    assert matrix[1].nnz == 3  # the, fox, the fox
    assert matrix[2].nnz == 6
    with pytest.raises(ValueError, match="longest must be 1 or more"):
        word_terms(["a"], 0)
