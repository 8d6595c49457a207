"""The derivative of whole runs of a decoder with tied embeddings, and of an adapter, against central differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from bilevel.core import RowProblem
from bilevel.core.lower_steps import Iterate
from bilevel.core.unroll import Above, Plan, Reached, RunPrograms, TrainingRun, differentiate_run
from bilevel.model import as_model
from bilevel.objectives import mean_loss
from bilevel.weighting import row_logits
from models import DecoderConfig, LoraConfig
from models.language_model import LanguageModel
from tests.float64.test_unroll import POOL
from tests.zoo import relative_error, slope_at_zero

CONFIG = DecoderConfig(
    vocab_size=11,
    width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    mlp_width=8,
    tied_embeddings=True,
    init_std=0.5,
)
LORA = LoraConfig(rank=2, targets=("query", "value", "up"))


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True], ids=["tied embeddings", "lora"])
def test_it_is_the_derivative_of_complete_runs_of_a_decoder(adapted):
    rows, length, steps = 6, 5, 5
    base = models.init(CONFIG, jax.random.key(0), jnp.float64)
    params = models.lora.init(CONFIG, LORA, jax.random.key(1), jnp.float64) if adapted else base
    given = {"base": base, "adapter": LORA} if adapted else {}
    model = as_model(LanguageModel(CONFIG, params, **given))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(2e-2, eps=1e-2, weight_decay=0.1))
    problem = RowProblem(model.row_losses, row_logits("sigmoid"), mean_loss(model.row_losses))
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(POOL)[:rows] for _ in range(steps)])
    pool = rng.integers(0, CONFIG.vocab_size, (POOL + rows, length))

    def batch(ids):
        shape = (*ids.shape, length)
        mask = np.broadcast_to(np.arange(length) > 1, shape)
        return {
            "tokens": jnp.asarray(pool[ids], jnp.int32),
            "segments": jnp.ones(shape, jnp.int32),
            "loss_mask": jnp.asarray(mask),
            "row_id": jnp.asarray(np.where(ids < POOL, ids, -1), jnp.int32),
        }

    lower, trusted = batch(ids[:, None]), batch(np.arange(POOL, POOL + rows))
    run = TrainingRun(
        Reached(Iterate(params, optimizer.init(params)), ()),
        steps,
        lambda begin, end: {key: value[begin:end] for key, value in lower.items()},
    )
    outer = jnp.asarray(0.3 * rng.normal(size=POOL))
    programs = RunPrograms(problem, optimizer)

    def above(inner):
        gradient = jax.grad(lambda inner: problem.upper(outer, inner, trusted).value)(inner)
        return Above(jnp.zeros(POOL), gradient)

    found = differentiate_run(programs, outer, run, above, Plan(steps, steps)).gradient
    directions = rng.normal(size=(8, POOL))

    @jax.jit
    @jax.vmap
    def after(moved):
        def step(at, batch):
            params, state = at
            weights = problem.weighting.weights(moved, (), batch, None)
            gradient = jax.grad(
                lambda params: (
                    model.row_losses(params, jax.tree.map(lambda x: x[0], batch)).weighted(weights[0]).value
                )
            )(params)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        end = jax.lax.scan(step, (params, optimizer.init(params)), lower)[0][0]
        return problem.upper(moved, end, trusted).value

    slopes = slope_at_zero(lambda by: after(outer + by * directions), 1e-3)
    assert relative_error(directions @ found, slopes) < 1e-6
