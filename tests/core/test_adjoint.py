"""The rules at size, in float32: a million variables, a transformer, half precision, one compilation."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from bilevel.core import (
    Curvature,
    EstimatorSettings,
    Mean,
    Problem,
    RowProblem,
    conjugate_gradient,
    make_solver,
)
from bilevel.core.lower_level import row_scores
from bilevel.objectives import mean_loss, response_losses, response_losses_of_logits
from bilevel.weighting import row_logits, uniform
from tests.zoo import in_micro_batches, network, point_of, row_problem, rows

IMPLICIT = {
    "conjugate_gradient": EstimatorSettings("conjugate_gradient", iterations=4),
    "neumann": EstimatorSettings("neumann", iterations=4),
    "nystrom": EstimatorSettings("nystrom", rank=2, relative_damping=1.0),
}
MILLION = 1_000_000


def scaled(curvature: float) -> Problem:
    """lower = curvature |w|^2 / 2 - w.(outer t), upper = |w - t|^2 / 2, in a million variables."""

    def lower(outer, inner, batch):
        return Mean(0.5 * curvature * jnp.sum(inner**2) - outer * jnp.sum(inner * batch["target"]), 1.0)

    def upper(outer, inner, batch):
        return Mean(0.5 * jnp.sum((inner - batch["target"]) ** 2), 1.0)

    return Problem(lower, upper)


@pytest.mark.parametrize("curvature", [1.0, 20.0])
@pytest.mark.parametrize("name", IMPLICIT)
def test_a_multiple_of_the_identity_in_a_million_variables_is_inverted(name, curvature):
    problem, settings = scaled(curvature), IMPLICIT[name]
    solver = make_solver(settings, problem, optax.sgd(0.0), optax.sgd(1.0), outer_start=jnp.ones(()))
    batch = {"target": np.random.default_rng(0).normal(size=(1, MILLION)).astype(np.float32)}
    state = solver.init(jax.random.key(0), jnp.zeros(MILLION))
    after, report = jax.jit(solver.step)(state, {"target": batch["target"][None]}, batch)
    # grad upper = -t at w = 0, so q = -t / curvature and the outer gradient is t.q. What the sketch of the Nystrom
    # rule misses is divided by the damping, which is the curvature here.
    expected = float(np.sum(batch["target"] ** 2)) / curvature
    assert report.finite
    assert float(after.outer.inner) - 1.0 == pytest.approx(expected, rel=1e-3)
    assert float(report.diagnostics.residual) < 1e-3 or name == "nystrom"


CONFIG = models.DecoderConfig(
    vocab_size=1024, width=128, layers=4, heads=4, kv_heads=4, mlp_width=512, max_positions=16, init_std=0.1
)


def tokens(seed: int, sequences: int, config=CONFIG):
    rng = np.random.default_rng(seed)
    return {
        "tokens": jnp.asarray(rng.integers(0, config.vocab_size, (sequences, 16), dtype=np.int32)),
        "segments": jnp.ones((sequences, 16), jnp.int32),
        "loss_mask": jnp.ones((sequences, 16), bool),
        "row_id": jnp.arange(sequences),
    }


def language_model(config=CONFIG) -> RowProblem:
    """Row losses of a decoder that say what their outputs are."""

    row_losses = response_losses_of_logits(
        lambda params, batch: models.logits(params, batch["tokens"], batch["segments"], config)
    )
    return RowProblem(row_losses, row_logits(), mean_loss(row_losses))


def solved(config, iterations: int, curvature: Curvature):
    """A rule's answer for a model that was not trained, along a random upper gradient."""
    params, key = models.init(config, jax.random.key(0)), jax.random.key(1)
    levels, point = point_of(language_model(config), jnp.zeros(4), params, tokens(0, 4, config))
    target = optax.tree.random_like(key, params, jax.random.normal)
    solve = conjugate_gradient(iterations, curvature).solve
    return jax.jit(lambda target: solve(levels, point, target, ()))(target)


def test_the_hessian_of_a_transformer_of_a_million_parameters_is_solved_with_damping():
    found = solved(CONFIG, 8, Curvature(damping=300.0))
    assert sum(leaf.size for leaf in jax.tree.leaves(found.q)) > 900_000
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found.q))
    assert float(found.diagnostics.residual) < 0.05
    assert 0 < float(found.diagnostics.curvature) < 600


SMALL = models.DecoderConfig(
    vocab_size=32, width=16, layers=1, heads=2, kv_heads=1, mlp_width=32, max_positions=16, init_std=0.25
)


def test_gauss_newton_serves_where_the_hessian_of_a_language_model_is_indefinite():
    hessian, gauss_newton = (
        solved(SMALL, 50, Curvature(kind)).diagnostics for kind in ("hessian", "gauss_newton")
    )
    assert float(hessian.curvature) < -1e-4
    assert float(gauss_newton.curvature) > -1e-6
    assert float(gauss_newton.residual) < float(hessian.residual)


def test_row_scores_in_half_precision_are_within_a_per_cent_of_single():
    params = models.init(SMALL, jax.random.key(0))
    batch = in_micro_batches(tokens(0, 16, SMALL), 1)

    def scores(dtype):
        def token_scores(params, batch):
            return models.token_scores(models.cast(params, dtype), batch, SMALL)

        row_losses = response_losses(token_scores)
        problem = RowProblem(row_losses, uniform(), mean_loss(row_losses))
        trusted = tokens(1, 16, SMALL)
        single = response_losses(lambda params, batch: models.token_scores(params, batch, SMALL))
        direction = jax.grad(lambda params: single(params, trusted).weighted().value)(params)
        return np.ravel(
            jax.jit(lambda params, q: row_scores(problem, params, batch, q)[0])(params, direction)
        )

    exact, rough = scores("float32"), scores("bfloat16")
    assert np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 0.01


@pytest.mark.parametrize(
    "settings",
    [
        EstimatorSettings("conjugate_gradient", warm_start=True, relative_damping=0.1, tolerance=1e-3),
        EstimatorSettings("neumann", warm_start=True, iterations=3),
        EstimatorSettings("nystrom", rank=3),
        EstimatorSettings("dense", damping=0.1),
    ],
    ids=lambda settings: settings.name,
)
def test_a_second_step_compiles_nothing(settings):
    solver = make_solver(settings, row_problem(16), optax.adam(1e-2), optax.sgd(0.1))
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(solver.step, n=1))
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), {"row_id": 16})
    for seed in range(3):
        lower = in_micro_batches(rows(seed, 8, 16), 2)
        state, report = step(
            state, jax.tree.map(lambda x: x[None], lower), in_micro_batches(rows(seed + 9, 4), 1)
        )
        assert report.finite
