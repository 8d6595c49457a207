"""What the implicit rules report, and when they stop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core import Curvature, Mean, Problem, conjugate_gradient, dense, neumann, nystrom
from bilevel.core.hypergradient import Direction
from tests.zoo import point_of

DIAGONAL = np.array([4.0, 3.0, 2.0, 1.5, 1.0, 0.5])
TARGET = {"a": jnp.arange(1.0, 4.0), "b": {"c": jnp.array([[1.0, -1.0, 2.0]])}}


def solver(rule, diagonal=DIAGONAL):
    """A rule for a diagonal matrix, `(target, state) -> Direction`, and its first state."""
    values = jnp.asarray(diagonal)

    def lower(outer, inner, batch):
        flat = jnp.concatenate([inner["a"], inner["b"]["c"][0]])
        return Mean(0.5 * jnp.sum(values * flat**2) * jnp.sum(batch["one"]), jnp.sum(batch["one"]))

    inner = jax.tree.map(jnp.zeros_like, TARGET)
    levels, point = point_of(Problem(lower, lower), jnp.zeros(()), inner, {"one": np.ones(2)})
    solve = jax.jit(lambda target, state: rule.solve(levels, point, target, state))
    return solve, rule.init(levels, inner)


def solved(rule, diagonal=DIAGONAL, target=TARGET) -> Direction:
    solve, state = solver(rule, diagonal)
    return solve(target, state)


def flat(tree):
    return np.concatenate([tree["a"], tree["b"]["c"][0]])


@pytest.mark.parametrize(
    "rule",
    [conjugate_gradient(6), neumann(400), nystrom(6, Curvature(damping=1e-7)), dense()],
    ids=["conjugate_gradient", "neumann", "nystrom", "dense"],
)
def test_a_diagonal_system_is_solved(rule):
    found = solved(rule)
    np.testing.assert_allclose(flat(found.q), flat(TARGET) / DIAGONAL, rtol=1e-5)
    assert float(found.diagnostics.residual) < 1e-5
    assert 0.49 < float(found.diagnostics.curvature) < 4.01


@pytest.mark.parametrize("damping", [0.5, 2.0])
@pytest.mark.parametrize("rule", [lambda c: conjugate_gradient(6, c), lambda c: neumann(400, c), dense])
def test_damping_adds_to_every_eigenvalue(rule, damping):
    found = solved(rule(Curvature(damping=damping)))
    np.testing.assert_allclose(flat(found.q), flat(TARGET) / (DIAGONAL + damping), rtol=1e-5)
    assert float(found.diagnostics.damping) == damping


def test_residuals_are_relative_and_fall_with_the_iterations():
    residuals = [float(solved(conjugate_gradient(k)).diagnostics.residual) for k in (1, 2, 4, 6)]
    assert residuals == sorted(residuals, reverse=True)
    q = flat(solved(conjugate_gradient(2)).q)
    missed = np.linalg.norm(flat(TARGET) - DIAGONAL * q) / np.linalg.norm(flat(TARGET))
    assert residuals[1] == pytest.approx(missed, rel=1e-9)


def test_a_tolerance_ends_the_iteration():
    residual = float(solved(conjugate_gradient(100, tolerance=0.1)).diagnostics.residual)
    assert 1e-3 < residual <= 0.1
    assert float(solved(conjugate_gradient(100)).diagnostics.residual) < 1e-14


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_lengths_whose_square_underflows_or_overflows_are_solved(scale):
    target = jax.tree.map(lambda x: x * scale, TARGET)
    found = solved(conjugate_gradient(6), target=target)
    np.testing.assert_allclose(flat(found.q) / scale, flat(TARGET) / DIAGONAL, rtol=1e-9)


def test_negative_curvature_stops_the_iteration_and_is_reported():
    indefinite = np.array([3.0, 2.0, 1.0, -0.5, 1.0, 1.0])
    found = solved(conjugate_gradient(50), indefinite)
    assert float(found.diagnostics.curvature) < 0
    assert float(found.diagnostics.residual) > 1e-3
    assert np.all(np.isfinite(flat(found.q)))
    assert np.linalg.norm(flat(found.q)) < 10 * np.linalg.norm(flat(TARGET))
    negative = solved(conjugate_gradient(50), -DIAGONAL)
    assert np.all(flat(negative.q) == 0.0)
    assert float(negative.diagnostics.residual) == 1.0
    diverging = solved(neumann(200), indefinite)
    assert float(diverging.diagnostics.curvature) < 0
    assert float(diverging.diagnostics.residual) > 1
    assert float(solved(dense(), indefinite).diagnostics.curvature) == pytest.approx(-0.5)
    sketched = solved(nystrom(6, Curvature(damping=1e-3)), indefinite)
    assert float(sketched.diagnostics.curvature) < 0
    damped = solved(conjugate_gradient(50, Curvature(damping=1.0)), indefinite)
    np.testing.assert_allclose(flat(damped.q), flat(TARGET) / (indefinite + 1.0), rtol=1e-9)


@pytest.mark.parametrize("rule", [conjugate_gradient(3), neumann(3)], ids=["conjugate_gradient", "neumann"])
def test_nan_in_the_matrix_is_not_hidden(rule):
    found = solved(rule, np.where(DIAGONAL == 2.0, np.nan, DIAGONAL))
    assert np.isnan(float(found.diagnostics.residual))


@pytest.mark.parametrize("make", [conjugate_gradient, neumann])
def test_a_warm_start_goes_on_where_the_last_solve_ended(make):
    solve, state = solver(make(2, warm_start=True))
    first = solve(TARGET, state)
    second = solve(TARGET, first.state)
    assert float(second.diagnostics.residual) < 0.7 * float(first.diagnostics.residual)
    cold = solved(make(2))
    np.testing.assert_allclose(flat(first.q), flat(cold.q), rtol=1e-12)
    for _ in range(60):
        second = solve(TARGET, second.state)
    np.testing.assert_allclose(flat(second.q), flat(TARGET) / DIAGONAL, rtol=1e-4)


RULES = {
    "conjugate_gradient": conjugate_gradient(3),
    "neumann": neumann(3),
    "nystrom": nystrom(3),
    "dense": dense(),
}


@pytest.mark.parametrize("name", RULES)
def test_a_zero_target_gives_zero_and_nan_stays_nan(name):
    solve, state = solver(RULES[name])
    found = solve(jax.tree.map(jnp.zeros_like, TARGET), state)
    assert np.all(flat(found.q) == 0.0)
    assert float(found.diagnostics.residual) == 0.0
    lost = solve({**TARGET, "a": TARGET["a"].at[1].set(jnp.nan)}, state)
    assert np.isnan(flat(lost.q)).any()


def test_a_given_step_size_spares_the_power_iteration():
    found = solved(neumann(3, step_size=0.1))
    terms = sum((1 - 0.1 * DIAGONAL) ** k for k in range(3))
    np.testing.assert_allclose(flat(found.q), 0.1 * terms * flat(TARGET), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: conjugate_gradient(0), "iterations"),
        (lambda: conjugate_gradient(1, tolerance=1.0), "tolerance"),
        (lambda: neumann(0), "iterations"),
        (lambda: neumann(1, step_size=0.0), "step_size"),
        (lambda: nystrom(0), "rank"),
        (lambda: nystrom(2, Curvature()), "damping"),
        (lambda: solved(nystrom(7)), "rank 7 exceeds the 6"),
        (lambda: solved(dense(limit=5)), "6 inner variables are more than 5"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def solved_by(rule, matrix: np.ndarray, target: np.ndarray) -> Direction:
    """A rule for a whole matrix."""

    def lower(outer, inner, batch):
        return Mean(0.5 * inner @ jnp.asarray(matrix) @ inner * jnp.sum(batch["one"]), jnp.sum(batch["one"]))

    inner = jnp.zeros(len(target))
    levels, point = point_of(Problem(lower, lower), jnp.zeros(()), inner, {"one": np.ones(2)})
    return rule.solve(levels, point, jnp.asarray(target), rule.init(levels, inner))


def singular(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of eigenvalues 3, 1, 0.5 and three zeros in a random basis, and a target with parts in all of it."""
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    return (basis * [3.0, 1.0, 0.5, 0.0, 0.0, 0.0]) @ basis.T, basis @ np.array(
        [1.0, 2.0, -1.0, 4.0, 0.0, 3.0]
    )


@pytest.mark.parametrize("rule", [conjugate_gradient(30), dense()], ids=["conjugate_gradient", "dense"])
def test_directions_without_curvature_are_left_out_and_what_they_miss_is_the_residual(rule):
    matrix, target = singular(np.random.default_rng(0))
    found = solved_by(rule, matrix, target)
    # Along them q has no meaning, and what is made of q does not see it.
    np.testing.assert_allclose(matrix @ found.q, matrix @ np.linalg.pinv(matrix) @ target, atol=1e-6)
    assert np.linalg.norm(found.q) < 2 * np.linalg.norm(np.linalg.pinv(matrix) @ target)
    assert float(found.diagnostics.residual) == pytest.approx(5 / np.linalg.norm(target), rel=1e-5)
    assert abs(float(found.diagnostics.curvature)) < 1e-12


@pytest.mark.parametrize("rule", [conjugate_gradient(30), dense()], ids=["conjugate_gradient", "dense"])
def test_where_nothing_curves_nothing_is_solved(rule):
    found = solved_by(rule, np.zeros((6, 6)), np.arange(1.0, 7.0))
    assert np.all(np.asarray(found.q) == 0.0)
    assert float(found.diagnostics.residual) == 1.0


def test_a_series_without_curvature_is_not_called_finite():
    found = solved_by(neumann(5), np.zeros((6, 6)), np.arange(1.0, 7.0))
    assert not np.isfinite(float(found.diagnostics.residual))


def test_a_step_along_a_direction_that_turns_out_flat_is_not_called_finite():
    # Of a first direction nothing shows that its curvature is rounding, where that happens to be positive.
    matrices = [singular(np.random.default_rng(seed))[0] for seed in range(4)]
    targets = [np.linalg.eigh(matrix)[1][:, 1] for matrix in matrices]
    found = [solved_by(conjugate_gradient(6), *pair) for pair in zip(matrices, targets, strict=True)]
    for direction in found:
        assert np.isinf(float(direction.diagnostics.residual)) or np.linalg.norm(direction.q) < 10
    assert any(np.isinf(float(direction.diagnostics.residual)) for direction in found)


def test_badly_conditioned_systems_are_still_solved():
    values = np.logspace(0, -9, 6)
    found = solved_by(conjugate_gradient(60), np.diag(values), np.ones(6))
    np.testing.assert_allclose(found.q, 1 / values, rtol=1e-4)
