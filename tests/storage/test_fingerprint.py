from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.layout.devices import data_mesh, replicate
from bilevel.storage.fingerprint import fingerprint_rows, fingerprint_source, fingerprint_tree
from tests.schedule.toy import encoded

TREE = {"a": jnp.arange(12.0).reshape(3, 4), "b": [jnp.ones(3, jnp.bfloat16), jnp.array([True, False])]}


def test_a_fingerprint_is_of_the_values_wherever_they_lie():
    assert fingerprint_tree(TREE) == fingerprint_tree(jax.tree.map(jnp.copy, TREE))
    assert fingerprint_tree(TREE) == fingerprint_tree(replicate(TREE, data_mesh()))
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


def test_rows_are_their_texts_labels_and_tokens():
    rows = encoded(5, 0, faulty=2)
    assert fingerprint_rows(rows) == fingerprint_rows(encoded(5, 0, faulty=2))
    first = dataclasses.replace(rows.rows[0], labels={"fault": ""})
    tokens = rows.tokens.copy()
    tokens[4, 3] += 1
    for other in (
        dataclasses.replace(rows, rows=(first, *rows.rows[1:])),
        dataclasses.replace(rows, tokens=tokens),
        rows.select([1, 0, 2, 3, 4]),
    ):
        assert fingerprint_rows(other) != fingerprint_rows(rows)


def test_a_function_is_its_file():
    assert fingerprint_source(changed) == fingerprint_source(test_any_change_shows)
    assert fingerprint_source(changed) != fingerprint_source(encoded)
    assert fingerprint_source(len) == fingerprint_source(abs)  # written in no file
