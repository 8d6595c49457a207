"""Saved networks keep their meaning: names, shapes and fresh values of the encoder are those of its first release."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.weighting import EncoderSettings, encoder

SETTINGS = EncoderSettings(width=8, layers=2, heads=2, mlp_width=12, across_rows=1)
# Path, shape, and the first value and the sum that key 7 draws.
RECORDED = """
across_rows/attention/key/kernel 1x8x8 0.39387515 2.3537054
across_rows/attention/output/kernel 1x8x8 0.11353338 1.1400478
across_rows/attention/query/kernel 1x8x8 -0.29005030 -2.7030127
across_rows/attention/value/kernel 1x8x8 -0.25967094 -3.0431093
across_rows/attention_norm/scale 1x8 1.00000000 8.0000000
across_rows/mlp/down/kernel 1x12x8 0.13053040 -4.6043996
across_rows/mlp/gate/kernel 1x8x12 0.37920526 1.6186887
across_rows/mlp/up/kernel 1x8x12 0.04622728 -4.6117188
across_rows/mlp_norm/scale 1x8 1.00000000 8.0000000
embedding 11x8 0.22323114 -0.7857692
head/kernel 8x1 0.00000000 0.0000000
head_norm/scale 8 1.00000000 8.0000000
layers/attention/key/kernel 2x8x8 0.50834370 0.1762549
layers/attention/output/kernel 2x8x8 0.05850758 1.6723075
layers/attention/query/kernel 2x8x8 0.26452279 5.1916438
layers/attention/value/kernel 2x8x8 0.25473762 -0.7414283
layers/attention_norm/scale 2x8 1.00000000 16.0000000
layers/mlp/down/kernel 2x12x8 0.03459613 -1.3087219
layers/mlp/gate/kernel 2x8x12 0.38764817 7.7488751
layers/mlp/up/kernel 2x8x12 -0.50831860 1.9658328
layers/mlp_norm/scale 2x8 1.00000000 16.0000000
mark 2x8 0.23592636 -0.3210257
mlp/down/kernel 12x8 0.32304490 0.6530701
mlp/gate/kernel 8x12 -0.22877425 -2.5138198
mlp/up/kernel 8x12 -0.72290164 0.4553458
mlp_norm/scale 8 1.00000000 8.0000000
pool/kernel 16x8 0.05327669 -4.6910425
pool_norm/scale 16 1.00000000 16.0000000
"""


def paths(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def fresh():
    return encoder(11, SETTINGS).init(jax.random.key(7))


def test_names_shapes_and_fresh_values_are_the_recorded_ones(fresh):
    found = paths(fresh)
    lines = [line.split() for line in RECORDED.split("\n") if line]
    assert list(found) == [path for path, *_ in lines]
    for path, shape, first, total in lines:
        values = np.asarray(found[path], np.float64)
        assert "x".join(map(str, values.shape)) == shape
        np.testing.assert_allclose(
            [values.flat[0], values.sum()], [float(first), float(total)], rtol=1e-5, atol=1e-6
        )


def test_scores_are_the_recorded_ones(fresh):
    scorer = encoder(11, SETTINGS)
    parameters = jax.tree.map(lambda x: x + 0.1, fresh)
    segments = jnp.asarray([[[1] * 8, [1] * 5 + [0] * 3, [1] * 7 + [0]]])
    batch = {
        "tokens": jnp.arange(24).reshape(1, 3, 8) % 11,
        "segments": segments,
        "loss_mask": (jnp.arange(8) > 3) & (segments > 0),
        "row_id": jnp.asarray([[0, 1, 2]]),
    }
    scores = jax.jit(lambda p: scorer.scores(p, batch, None))(parameters)
    np.testing.assert_allclose(scores, [[0.81656057, 0.53569514, 0.69631857]], rtol=1e-5)
