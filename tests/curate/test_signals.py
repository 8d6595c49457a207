"""Signals of a model beside what the model says of one row at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from bilevel import Model, as_model
from bilevel.curate import RESPONSE_LOSS, complexity, measure_rows, neighbour_similarity, neighbours, ngrams
from bilevel.data import ArrayRows, EncodedRows, Row
from bilevel.data.parts import prompts, response_header, responses, with_and_without_prompt
from bilevel.errors import InputError
from bilevel.layout import data_layout

START, END, HEADER = 1, 2, (9, 10)
CONFIG = models.DecoderConfig(vocab_size=16, width=8, layers=1, heads=2, kv_heads=1, mlp_width=8)
LANGUAGE = models.load(CONFIG, seed=3)
ONE = data_layout(jax.devices()[:1])


class WithStart:
    """A tokenizer as far as signals look at it."""

    bos_token_id, eos_token_id = START, END


def model_with(tokenizer):
    import dataclasses

    return dataclasses.replace(as_model(LANGUAGE), tokenizer=tokenizer)


MODEL = model_with(WithStart())


def rows_of(*pairs, header=HEADER, start=(START,)) -> EncodedRows:
    """Rows from (prompt tokens, response tokens); responses end with the end token."""
    width = 16
    tokens, mask = np.zeros((len(pairs), width), np.int32), np.zeros((len(pairs), width), bool)
    segments = np.zeros((len(pairs), width), np.int32)
    named = []
    for place, (asked, said) in enumerate(pairs):
        before, answer = [*start, *asked, *header], [*said, END] if said else []
        tokens[place, : len(before) + len(answer)] = before + answer
        segments[place, : len(before) + len(answer)] = 1
        mask[place, len(before) : len(before) + len(answer)] = True
        named.append(Row(f"a:{place}", str(asked), "", " ".join(f"w{token}" for token in said)))
    return EncodedRows(tuple(named), tokens, segments, mask)


ROWS = rows_of(
    ((3, 4, 5), (6, 7)),
    ((3,), (6,)),
    ((4, 4, 4, 4, 5), (7, 8, 11, 12)),
    ((12, 3), (6, 7, 8)),
    ((5, 3, 4), (13, 14)),
)


def loss_by_hand(tokens: list[int], counted: int) -> float:
    """The mean loss of the last `counted` tokens, from the logits of this row alone."""
    batch = {"tokens": jnp.asarray([tokens]), "segments": jnp.ones((1, len(tokens)), jnp.int32)}
    log_p = np.asarray(jax.nn.log_softmax(LANGUAGE.logits(LANGUAGE.params, batch))[0], np.float64)
    places = range(len(tokens) - counted, len(tokens))
    return float(np.mean([-log_p[place - 1, tokens[place]] for place in places]))


@pytest.fixture(scope="module")
def by_hand() -> np.ndarray:
    found = []
    for row, (first, end) in enumerate(zip(*responses(ROWS), strict=True)):
        tokens = ROWS.tokens[row].tolist()
        response = tokens[first:end]
        conditional = loss_by_hand(tokens[:end], len(response))
        unconditional = loss_by_hand([START, *HEADER, *response], len(response))
        found.append([np.exp(conditional - unconditional), conditional, unconditional])
    return np.array(found)


@pytest.fixture(scope="module")
def measured():
    return measure_rows(complexity(), MODEL, ROWS, layout=ONE, batch_rows=4)


def test_complexity_is_what_a_hand_computation_says(measured, by_hand):
    found = np.stack([measured[name] for name in ("", "_conditional", "_unconditional")], axis=1)
    np.testing.assert_allclose(found, by_hand, rtol=2e-5)
    assert np.ptp(by_hand[:, 0]) > 0.01  # the rows differ


def test_complexity_of_losses_is_their_quotient(measured):
    found = measure_rows(complexity("loss"), MODEL, ROWS, layout=ONE, batch_rows=4)
    np.testing.assert_allclose(found[""], measured["_conditional"] / measured["_unconditional"], rtol=1e-5)


def test_padded_rows_and_eight_devices_say_the_same(measured):
    import dataclasses

    padded = dataclasses.replace(MODEL, packs=False)
    apart = measure_rows(complexity(), padded, ROWS, layout=ONE, batch_rows=4)
    shared = measure_rows(complexity(), MODEL, ROWS, layout=data_layout(jax.devices()), batch_rows=8)
    for name in measured:
        np.testing.assert_allclose(apart[name], measured[name], rtol=1e-5)
        np.testing.assert_allclose(shared[name], measured[name], rtol=1e-5)


def test_rows_without_a_response_and_losses_that_are_not_finite_have_no_ratio():
    rows = rows_of(((3, 4), (6, 7)), ((3, 5), ()), ((4, 5), (7,)))
    found = measure_rows(complexity(), MODEL, rows, layout=ONE, batch_rows=4)
    assert np.isnan(found[""]).tolist() == [False, True, False]
    assert np.isnan(measure_rows(RESPONSE_LOSS, MODEL, rows, layout=ONE, batch_rows=4)[""]).tolist() == [
        False,
        True,
        False,
    ]
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, MODEL.params)
    lost = measure_rows(complexity(), MODEL, rows, params=broken, layout=ONE, batch_rows=4)
    assert np.isnan(lost[""]).all()


def test_spans_are_those_of_the_last_response():
    mask = np.array([[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0, 0, 0], [0] * 8], bool)
    tokens = np.arange(24, dtype=np.int32).reshape(3, 8)
    named = tuple(Row(f"a:{n}", "", "", "") for n in range(3))
    rows = EncodedRows(named, tokens, np.ones((3, 8), np.int32), mask)
    first, end = responses(rows)
    assert (first.tolist(), end.tolist()) == ([6, 1, 0], [8, 3, 0])
    both = with_and_without_prompt(rows, header=(99,))
    # An earlier response is read and no longer counted; a response alone follows the header.
    assert both.tokens[0, :8].tolist() == tokens[0].tolist()
    assert np.flatnonzero(both.loss_mask[0]).tolist() == [6, 7]
    assert both.tokens[3, :3].tolist() == [99, 6, 7]
    assert np.flatnonzero(both.loss_mask[3]).tolist() == [1, 2]
    assert not both.loss_mask[[2, 5]].any()


def test_a_response_alone_follows_what_ends_every_prompt():
    first, _ = responses(ROWS)
    assert response_header(ROWS, first) == HEADER
    plain = rows_of(((3, 4), (6,)), ((3, 5), (7,)), header=(), start=())
    both = with_and_without_prompt(plain)
    # Neither start token nor header: the last token of its own prompt stands there.
    assert both.tokens[2:, :3].tolist() == [[4, 6, END], [5, 7, END]]
    same = rows_of(((3, 4), (6,)), ((3, 4), (7,)))
    alone = with_and_without_prompt(same, start=START)
    assert alone.tokens[2, :6].tolist() == [START, 3, 4, *HEADER, 6]


def test_embeddings_are_means_of_the_prompts_last_hidden_states():
    found = measure_rows(neighbour_similarity(2), MODEL, ROWS, layout=ONE, batch_rows=4)
    vectors = []
    for row, first in enumerate(responses(ROWS)[0]):
        batch = {"tokens": ROWS.tokens[row : row + 1, :first], "segments": np.ones((1, first), np.int32)}
        vectors.append(np.mean(np.asarray(LANGUAGE.hidden(LANGUAGE.params, batch))[0], axis=0))
    expected = neighbours(np.stack(vectors), 2)
    np.testing.assert_allclose(found[""], expected.similarity.mean(axis=1), atol=1e-5)
    nearest = np.stack([found["_neighbour_1"], found["_neighbour_2"]], axis=1)
    np.testing.assert_array_equal(nearest, expected.ids)
    asked = prompts(ROWS)
    assert asked.lengths.tolist() == responses(ROWS)[0].tolist()
    assert not asked.loss_mask.any()


def test_a_model_of_logits_alone_has_no_embeddings():
    table = jnp.ones((16, 16))
    bare = Model.from_logits(lambda params, tokens: params[tokens], table)
    with pytest.raises(InputError, match="needs the model's embed, a vector for each row"):
        measure_rows(neighbour_similarity(1), bare, ROWS, layout=ONE, batch_rows=4)
    with pytest.raises(
        InputError, match="complexity is measured of rows of tokens alone: these are ArrayRows"
    ):
        measure_rows(complexity(), bare, ArrayRows({"x": np.ones(3)}), layout=ONE)


def test_what_was_measured_is_found_again_by_content(tmp_path, monkeypatch, measured):
    passes = []
    import bilevel.curate.signals as module

    whole = module.row_pass
    monkeypatch.setattr(module, "row_pass", lambda *given: passes.append(given[-1]) or whole(*given))
    options = {"layout": ONE, "batch_rows": 2, "folder": tmp_path}

    def again(rows=ROWS, params=None):
        del passes[:]
        return measure_rows(complexity(), MODEL, rows, params=params, **options)[""], len(passes)

    values, count = again()
    np.testing.assert_allclose(values, measured[""], rtol=1e-5)
    assert count == 3  # five rows, two at a time
    for place in (0, 3):
        found, count = again(ROWS.select([place, 4, 2]))
        assert count == 0
        np.testing.assert_array_equal(found, values[[place, 4, 2]])
    # Half of a line that a killed process left is cut off, and the piece measured again, to the same bits.
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:30])
    found, count = again()
    assert count == 2
    np.testing.assert_array_equal(found, values)
    # Twins are measured once; another model's values are others.
    twins, count = again(rows_of(((8, 8), (6,)), ((8, 8), (6,))))
    assert (count, twins[0]) == (1, twins[1])
    other = jax.tree.map(lambda leaf: leaf * 1.01, MODEL.params)
    found, count = again(params=other)
    assert count == 3
    assert len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(found, values)


def test_embeddings_are_found_again_too(tmp_path):
    options = {"layout": ONE, "batch_rows": 2, "folder": tmp_path}
    first = measure_rows(neighbour_similarity(1), MODEL, ROWS, **options)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    again = measure_rows(neighbour_similarity(1), MODEL, ROWS, **options)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    for name in first:
        np.testing.assert_array_equal(again[name], first[name])


def test_response_loss_is_the_conditional_one(measured):
    found = measure_rows(RESPONSE_LOSS, MODEL, ROWS, layout=ONE, batch_rows=4)
    np.testing.assert_allclose(found[""], measured["_conditional"], rtol=1e-5)


def test_ngrams_of_responses_are_counted_in_words_or_tokens():
    words = measure_rows(ngrams(2), MODEL, ROWS, layout=ONE)
    # w6 w7 | - | w7 w8, w8 w11, w11 w12 | w6 w7, w7 w8 | w13 w14
    np.testing.assert_allclose(words["_own"], [0, np.nan, 2 / 3, 0, 1])
    tokens = measure_rows(ngrams(1, of="tokens"), MODEL, ROWS, layout=ONE)
    # The end token is every row's.
    np.testing.assert_allclose(tokens["_own"], [0, 0, 2 / 5, 0, 2 / 3])
    np.testing.assert_allclose(tokens["_distinct"], np.ones(5))
