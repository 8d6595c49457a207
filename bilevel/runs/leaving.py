"""What a finished method leaves: its line of the results, files about its rows, its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from bilevel.core.tree import PyTree
from bilevel.layout import Layout
from bilevel.methods.method import Method
from bilevel.model import Model
from bilevel.report.model_card import FILE as CARD
from bilevel.report.model_card import MODEL, write_model_card
from bilevel.runs.results import summarise, write_row_results
from bilevel.schedule import RunState
from bilevel.storage.disk import naming_a_full_disk
from bilevel.storage.piecewise import write_each

PARAMETERS, OUTER = "parameters.safetensors", "outer.safetensors"


def result_line(method: Method, state: RunState, learned: bool) -> dict[str, float | None]:
    """A method's line of `summary.json`.

    Args:
        method: what ran.
        state: where it ended.
        learned: whether it chose the weights; only then does their AUC mean anything.
    """
    column = method.leaves.column
    weights = state.column(column) if column is not None and column in state.signals else None
    return summarise(state.results.get("test"), weights, state.data["pool"], learned)


def leave_rows(folder: Path, method: Method, state: RunState) -> None:
    """Writes what the main method found out about the rows of the pool, if it did, and its outer variables if not."""
    leaves, pool = method.leaves, state.data["pool"]
    if leaves.column is None:
        if state.solver is not None:
            with naming_a_full_disk(folder / OUTER):
                write_tree(folder / OUTER, state.solver.outer.inner)
        return
    signals = {
        name: column.values for name, column in state.signals.items() if column.data == pool.fingerprint
    }
    selected = None if leaves.rows is None else state.rows(leaves.rows)
    with naming_a_full_disk(folder / "weights.parquet"):
        write_row_results(folder, pool, {"weight": state.column(leaves.column), **signals}, selected)


def leave_model(folder: Path, method: Method, state: RunState, model: Model, layout: Layout) -> None:
    """Writes the main method's model to `model/`: by the model's own function, or as named arrays."""
    params = state.models[method.leaves.model]

    def write() -> None:
        if model.write is not None:
            model.write(folder / MODEL, params)
        else:
            write_tree(folder / MODEL / PARAMETERS, layout.gather(params))

    with naming_a_full_disk(folder / MODEL):
        (folder / MODEL).mkdir(exist_ok=True)
        write_each((folder / MODEL, write), (folder / MODEL / CARD, lambda: write_model_card(folder)))


def write_tree(path: Path, tree: PyTree) -> None:
    """Writes the arrays of a tree by their paths, as in `layers/0/kernel`."""
    # `np.ascontiguousarray` would give a single number an axis.
    save_file(
        {name: np.asarray(leaf, order="C") for name, leaf in _named(jax.device_get(tree)).items()}, path
    )


def read_tree(path: Path, like: PyTree) -> PyTree:
    """Reads what `write_tree` wrote into the structure of another tree.

    Raises:
        KeyError: the tree has arrays that the file has not.
    """
    found = load_file(path)
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(found[name]) for name in _named(like)])


def _named(tree: PyTree) -> Mapping[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # A tree that is one array has no path.
    return {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in leaves}
