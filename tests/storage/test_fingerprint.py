from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.layout import data_layout
from bilevel.storage.fingerprint import fingerprint_source, fingerprint_tree

TREE = {"a": jnp.arange(12.0).reshape(3, 4), "b": [jnp.ones(3, jnp.bfloat16), jnp.array([True, False])]}


def test_a_fingerprint_is_of_the_values_wherever_they_lie():
    assert fingerprint_tree(TREE) == fingerprint_tree(jax.tree.map(jnp.copy, TREE))
    assert fingerprint_tree(TREE) == fingerprint_tree(data_layout().replicate(TREE))
    assert fingerprint_tree(TREE) == fingerprint_tree(jax.device_get(TREE))


def changed(place, value):
    return jax.tree.map(lambda x: x, TREE) | {"a": TREE["a"].at[place].set(value)}


@pytest.mark.parametrize(
    "other",
    [
        changed((0, 0), -0.0),
        changed((2, 3), np.nextafter(np.float32(11), np.float32(12))),
        TREE | {"a": TREE["a"][::-1]},
        TREE | {"a": TREE["a"].reshape(4, 3)},
        TREE | {"a": TREE["a"].astype(jnp.int32)},
        {"c": TREE["a"], "b": TREE["b"]},
        TREE | {"b": [jnp.ones(3, jnp.bfloat16), jnp.array([False, True])]},
    ],
    ids=["sign of zero", "last bit", "order", "shape", "type", "name", "place of a flag"],
)
def test_any_change_shows(other):
    assert fingerprint_tree(other) != fingerprint_tree(TREE)


def test_a_function_is_its_file():
    assert fingerprint_source(changed) == fingerprint_source(test_any_change_shows)
    assert fingerprint_source(changed) != fingerprint_source(fingerprint_tree)
    assert fingerprint_source(len) == fingerprint_source(abs)  # written in no file
