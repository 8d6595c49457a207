"""`weights.parquet`: what every row weighed at the end, and what a model said about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from bilevel.errors import InputError

FILE = "weights.parquet"
REQUIRED = ("id", "weight")
RANK = "selected_rank"
"""Column: the place of a row among the selected ones, from 1; 0 for the others."""


def write_weights(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray | jax.Array]) -> None:
    """Writes one row of the table for each row of the data.

    Args:
        path: the file, usually `RUN/weights.parquet`.
        columns: equally long columns: `id` and `weight`, and any others (`loss_start`, `loss_end`, labels,
            signals). A nan (the loss of a row that was never visited) becomes null, as does None.

    Raises:
        ValueError: `id` or `weight` is missing, columns differ in length, an id comes twice, or a weight is
            negative or not finite.
    """
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{path}: column {missing[0]!r} is missing")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: columns differ in length: {lengths}")
    if len(set(columns["id"])) < len(columns["id"]):
        raise ValueError(f"{path}: an id comes twice")
    weights = np.asarray(columns["weight"], dtype=np.float64)
    if len(bad := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))):
        raise ValueError(f"{path}: row {columns['id'][bad[0]]} weighs {weights[bad[0]]}")
    table = pa.table({name: pa.array(_host(values), from_pandas=True) for name, values in columns.items()})
    temporary = path.with_name(f".{path.name}.unfinished")
    pyarrow.parquet.write_table(table, temporary)
    temporary.replace(path)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads the columns back as arrays.

    Args:
        path: the file that `write_weights` wrote.

    Returns:
        Numbers as float or integer arrays with nan for null, text as object arrays with None for null.

    Raises:
        InputError: no such file, or no table with an id and a weight.
    """
    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; name the folder of a finished run") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: no Parquet table ({error}); write it again") from error
    if missing := [name for name in REQUIRED if name not in table.column_names]:
        raise InputError(f"{path}: column {missing[0]!r} is missing; write it again")
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _host(values: Sequence[Any] | np.ndarray | jax.Array) -> Sequence[Any] | np.ndarray:
    return np.asarray(values) if isinstance(values, jax.Array) else values
