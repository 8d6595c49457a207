"""The derivative that a weight network learns from, through clipped Adam, against central differences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, implicit, optimizer_aware, unroll
from bilevel.core.problem import Weighting
from bilevel.weighting import EncoderSettings, added, encoder, loss_scorer, network
from tests.zoo import finite_difference, in_micro_batches, relative_error, row_losses, rows, upper
from tests.zoo import network as small_model

BATCH, LENGTH, VOCABULARY = 6, 5, 9
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(1e-2, weight_decay=0.1))
SMALL = EncoderSettings(width=4, layers=1, heads=1, mlp_width=4, across_rows=1)
SCORER = added(encoder(VOCABULARY, SMALL), loss_scorer("relative", 5))
FORMS = {
    "softmax": network(SCORER),
    "softmax with floor": network(SCORER, temperature=0.5, floor=0.2),
    "sigmoid": network(SCORER, form="sigmoid"),
    "absolute losses": network(loss_scorer(hidden=5)),
}


def weights_themselves() -> Weighting:
    """The outer variables are the weights of the batch's rows."""
    return Weighting(
        lambda key, sizes: (1.0 + 0.5 * jax.random.normal(key, (BATCH,)), ()),
        lambda outer, memory, batch, losses: outer[batch["row_id"]],
    )


def lower_batch() -> dict:
    rng = np.random.default_rng(5)
    marks = np.arange(LENGTH)[None] >= rng.integers(2, LENGTH, (BATCH, 1))
    tokens = rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    segments = np.ones((BATCH, LENGTH), np.int32)
    return rows(1, BATCH, BATCH, dtype=np.float64) | {
        "tokens": tokens,
        "segments": segments,
        "loss_mask": marks,
    }


def setting(weighting):
    """A warm start: moments that three steps have filled, outer variables away from their start."""
    problem = RowProblem(row_losses, weighting, upper)
    params = small_model(jax.random.key(0), dtype=jnp.float64)
    outer, _ = weighting.init(jax.random.key(1), {})
    leaves, structure = jax.tree.flatten(outer)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    outer = structure.unflatten(
        [x + 0.3 * jax.random.normal(k, x.shape, jnp.float64) for x, k in zip(leaves, keys, strict=True)]
    )
    state = OPTIMIZER.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: problem.general().lower(outer, p, lower_batch()).value)(params)
        updates, state = OPTIMIZER.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    return problem, params, state, outer


def loss_after(problem, params, state, steps):
    upper_batch = rows(2, 4, dtype=np.float64)

    def value(outer):
        inner, moments = params, state
        for _ in range(steps):
            gradient = jax.grad(lambda p: problem.general().lower(outer, p, lower_batch()).value)(inner)
            updates, moments = OPTIMIZER.update(gradient, moments, inner)
            inner = optax.apply_updates(inner, updates)
        return problem.upper(outer, inner, upper_batch).value

    return value


def estimated(problem, params, state, outer, hypergradient=None, pieces=1, steps=1):
    solver = alternating(problem, OPTIMIZER, optax.sgd(1.0), hypergradient or implicit(optimizer_aware()))
    begun = solver.init(jax.random.key(3), params)
    begun = begun.replace(
        inner=begun.inner._replace(optimizer=state), outer=begun.outer._replace(inner=outer)
    )
    cut = in_micro_batches(lower_batch(), pieces)
    lower = {name: np.stack([value] * steps) for name, value in cut.items()}
    upper_batch = in_micro_batches(rows(2, 4, dtype=np.float64), 1)
    after, report = jax.jit(solver.step)(begun, lower, upper_batch)
    assert report.finite
    return optax.tree.sub(outer, after.outer.inner)


@functools.cache
def setting_of(name):
    return setting(FORMS[name])


@functools.cache
def estimate_of(name, pieces=1):
    """Of one form of weights, whatever asks for it."""
    return estimated(*setting_of(name), pieces=pieces)


def slopes(gradient, function, outer):
    """Along random directions: those that a gradient stands for, and those of the function."""
    keys = jax.random.split(jax.random.key(7), 3)
    directions = jax.vmap(lambda key: optax.tree.random_like(key, outer, jax.random.normal))(keys)

    def moved(by):
        return function(jax.tree.map(lambda x, d: x + jnp.tensordot(by, d, 1), outer, directions))

    found = jax.vmap(lambda direction: optax.tree.vdot(gradient, direction))(directions)
    return found, finite_difference(moved, jnp.zeros(3))


def test_the_alignment_is_the_derivative_of_the_upper_loss_in_each_weight():
    problem, params, state, outer = setting(weights_themselves())
    reference = finite_difference(loss_after(problem, params, state, 1), outer)
    assert relative_error(estimated(problem, params, state, outer), reference) < 1e-6


@pytest.mark.parametrize("name", FORMS)
def test_the_network_gets_the_derivative_through_its_weights(name):
    """Shares, embeddings, attention across rows and all; losses that the network reads are constants."""
    problem, params, state, outer = setting_of(name)
    assert relative_error(*slopes(estimate_of(name), loss_after(problem, params, state, 1), outer)) < 1e-6


def test_an_unroll_of_three_steps_gives_the_network_their_derivative():
    """The losses that weights read change with the model, so tokens alone make three steps exact."""
    problem, params, state, outer = setting(network(encoder(VOCABULARY, SMALL)))
    found = estimated(problem, params, state, outer, unroll(), steps=3)
    assert relative_error(*slopes(found, loss_after(problem, params, state, 3), outer)) < 1e-6


@pytest.mark.parametrize("name", ["softmax with floor", "absolute losses"])
def test_accumulation_changes_nothing(name):
    for pieces in (2, 3):
        assert relative_error(estimate_of(name, pieces), estimate_of(name)) < 1e-12
