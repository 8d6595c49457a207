"""The bundle of a model's functions: of a language model, of any function to logits, of rows that are no text."""

from __future__ import annotations

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from bilevel import Model, as_model
from bilevel.core import RowLosses
from bilevel.errors import InputError
from bilevel.model import check_tokens
from bilevel.objectives import scores_of_logits

CONFIG = models.DecoderConfig(vocab_size=11, width=8, layers=1, heads=2, kv_heads=1, mlp_width=8)
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
BATCH = {
    "tokens": jax.random.randint(jax.random.key(0), (2, 6), 0, 11),
    "segments": SEGMENTS,
    "loss_mask": (SEGMENTS > 0) & (jnp.arange(6) > 1),
    "row_id": jnp.arange(2),
}


def bigram(params, tokens):
    return params["table"][tokens]


def table(size: int = 11):
    return {"table": jax.random.normal(jax.random.key(1), (size, size))}


class Rows:
    """Rows of three tokens with names, as a data set has them."""

    def __init__(self, tokens):
        self.tokens = np.asarray(tokens)

    def __len__(self):
        return len(self.tokens)

    def batch(self, ids):
        return {"tokens": self.tokens[ids], "segments": np.ones_like(self.tokens[ids])}

    def names(self, ids):
        return [f"pool.jsonl:{i + 1}" for i in ids]


def test_a_language_model_becomes_the_functions_of_its_scores():
    given = models.load(CONFIG)
    model = as_model(given)
    assert as_model(model) is model
    assert model.first_order is model.row_losses
    assert (model.params, model.config, model.vocabulary) == (given.params, CONFIG, 11)
    # A row's embedding is the mean of its own tokens' vectors, packed or padded; fillers have none.
    vectors = np.asarray(given.hidden(given.params, BATCH))
    padded = [vectors[0, :5].mean(axis=0), vectors[1].mean(axis=0)]
    np.testing.assert_allclose(model.embed(given.params, BATCH), padded, rtol=1e-5, atol=1e-6)
    packed = {**BATCH, "token_row": jnp.where(SEGMENTS > 0, SEGMENTS - 1 + jnp.asarray([[0], [2]]), -1)}
    packed["row_id"] = jnp.arange(4)
    apart = [
        vectors[0, :3].mean(axis=0),
        vectors[0, 3:5].mean(axis=0),
        vectors[1].mean(axis=0),
        0 * vectors[0, 0],
    ]
    np.testing.assert_allclose(model.embed(given.params, packed), apart, rtol=1e-5, atol=1e-6)
    assert (model.packs, model.tokenizer, model.described) == (True, None, "")

    @jax.jit
    def everything(params):
        losses, matches = model.evaluate(params, BATCH)
        return given.token_scores(params, BATCH), losses, matches, model.row_losses(params, BATCH)

    scores, losses, matches, again = everything(given.params)
    total = jnp.sum(jnp.where(BATCH["loss_mask"], scores.loss, 0), axis=1)
    np.testing.assert_allclose(losses.total, total, rtol=1e-6)
    chex.assert_trees_all_close(again, losses, rtol=1e-6)
    assert matches.shape == (2,)


def test_what_reads_values_and_gradients_alone_takes_the_faster_path():
    slow, fast = (
        lambda params, batch, by=by: scores_of_logits(by * params[batch["tokens"]], batch) for by in (1, 2)
    )
    given = SimpleNamespace(params=table()["table"], token_scores=slow, first_order_scores=fast, logits=None)
    model = as_model(given)
    doubled = Model.from_logits(lambda params, tokens: 2 * params[tokens], given.params)
    expected = doubled.row_losses(given.params, BATCH)
    chex.assert_trees_all_equal(model.first_order(given.params, BATCH), expected)
    chex.assert_trees_all_equal(model.evaluate(given.params, BATCH)[0], expected)
    assert np.any(model.row_losses(given.params, BATCH).total != expected.total)


def test_any_function_to_logits_is_a_model_and_rows_are_packed_only_where_it_sees_segments():
    params = table()
    model = Model.from_logits(bigram, params)
    assert (model.packs, model.vocabulary) == (False, None)
    seen = []

    def with_segments(params, tokens, segments):
        seen.append(segments)
        return bigram(params, tokens)

    packing = Model.from_logits(with_segments, params)
    chex.assert_trees_all_equal(packing.row_losses(params, BATCH), model.row_losses(params, BATCH))
    assert packing.packs
    assert seen[0] is SEGMENTS


def test_an_nnx_module_is_a_model_in_one_line():
    flax = models.from_nnx(nnx.Embed(11, 11, rngs=nnx.Rngs(0)))
    model = Model.from_logits(flax.apply, flax.init())
    expected = Model.from_logits(bigram, {"table": model.params["embedding"]})
    chex.assert_trees_all_close(
        model.row_losses(model.params, BATCH), expected.row_losses(expected.params, BATCH)
    )
    assert not model.packs


def test_outputs_are_the_logits_or_those_that_the_row_loss_names():
    params = table()
    model = Model.from_logits(bigram, params)
    losses = model.output_losses
    assert losses is model.output_losses
    chex.assert_trees_all_close(losses(params, BATCH), model.row_losses(params, BATCH))
    assert losses.outputs(params, BATCH).shape == (2, 6, 11)
    assert Model(losses).output_losses is losses
    assert Model(row_losses=lambda params, batch: RowLosses(params, params)).output_losses is None


def test_rows_that_are_no_text_need_their_losses_alone():
    def squares(params, batch):
        return RowLosses((params - batch["y"]) ** 2, jnp.ones_like(batch["y"]))

    model = Model(row_losses=squares, params=jnp.zeros(()))
    assert model.first_order is squares
    np.testing.assert_array_equal(model.row_losses(model.params, {"y": jnp.arange(3.0)}).total, [0, 1, 4])
    assert model.evaluate is None
    with pytest.raises(InputError, match="for text models"):
        model.for_objective(())


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match=r"dict is no model: give models\.load"):
        as_model({})


def test_fingerprints_tell_parameters_apart():
    model = Model.from_logits(bigram, table())
    assert model.fingerprint(model.params) == model.fingerprint(table())
    assert model.fingerprint({"table": model.params["table"] + 1e-3}) != model.fingerprint(model.params)


@pytest.mark.parametrize("known", [True, False])
def test_a_token_beyond_the_vocabulary_is_refused_with_its_row(known):
    model = as_model(models.load(CONFIG)) if known else Model.from_logits(bigram, table())
    check_tokens(model, Rows([[0, 1, 10]]))
    with pytest.raises(InputError, match=r"pool\.jsonl:2: token 11 is beyond the model's vocabulary of 11"):
        check_tokens(model, Rows([[0, 1, 10], [3, 11, 2], [12, 0, 0]]))
    check_tokens(Model(row_losses=lambda params, batch: RowLosses(params, params)), Rows([[99, 0, 0]]))


def test_scores_of_logits_are_the_decoders_own():
    params = models.init(CONFIG, jax.random.key(0))
    logits = models.logits(params, BATCH["tokens"], SEGMENTS, CONFIG)
    expected = models.token_scores(params, BATCH, CONFIG)
    np.testing.assert_array_equal(scores_of_logits(logits, BATCH).correct, expected.correct)
    np.testing.assert_allclose(scores_of_logits(logits, BATCH).loss, expected.loss, rtol=1e-6)
    narrow = scores_of_logits(logits.astype(jnp.bfloat16), BATCH)
    assert narrow.loss.dtype == jnp.float32
    np.testing.assert_allclose(narrow.loss, expected.loss, rtol=1e-2)
