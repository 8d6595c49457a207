"""What a data set is: rows with ids and columns, whatever they hold, known by a fingerprint.

Data sets never change. A move that rewrites, adds or drops rows makes another one, and whatever was measured on the old
one knows it by its fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from bilevel.errors import InputError

ROW_ID = "row_id"
TOKEN_COLUMNS = ("tokens", "segments", "loss_mask", "token_row", ROW_ID)
"""Names in the batches of token rows that belong to these themselves."""

Ids = Int[np.ndarray, "*batches rows"] | Sequence[Any]
"""Row ids; -1 asks for a filler row."""


@runtime_checkable
class Dataset(Protocol):
    """Rows that batches are made of.

    `EncodedRows`, `PackedRows` and `ArrayRows` are data sets; so is anything else that has these.
    """

    @property
    def fingerprint(self) -> str:
        """What these rows are, in 16 letters: the same for the same rows in every process and on every machine."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many rows there are, as `row_id`, and one more than the largest value of each index column."""
        ...

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Further numbers of the rows, by name; a name that ends in `_id` is an index."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def batch(self, indices: Any) -> dict[str, np.ndarray]:
        """The rows with these ids as arrays, `row_id` among them; -1 gives a filler row, which counts for nothing."""
        ...

    def names(self, indices: Any) -> list[str]:
        """Stable ids of the rows with these ids; "" for -1."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class ArrayRows:
    """Rows that are no text: arrays whose first axis counts the rows.

    >>> rows = ArrayRows({"x": np.eye(3, dtype=np.float32), "y": np.array([0, 1, 1])})
    >>> rows.batch([2, -1])["y"], rows.batch([2, -1])["row_id"]
    (array([1, 0]), array([ 2, -1], dtype=int32))
    >>> rows.names([2, -1]), dict(rows.sizes)
    (['row:3', ''], {'row_id': 3})

    A filler row holds zeros, and -1 as each index; a row loss gives it the count `row_id >= 0`.

    Attributes:
        columns: arrays by name, all with as many rows. Names that end in `_id` are indices: whole numbers from 0, one a
            row, or -1 for none.
        ids: stable names of the rows; by default `row:1`, `row:2` and so on.

    Raises:
        InputError: no column, columns of different lengths, a name that batches need themselves, values that are no
            numbers, or ids that are not one a row and all different.
    """

    columns: Mapping[str, np.ndarray]
    ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            raise InputError("rows need at least one column")
        arrays = {name: np.asarray(values) for name, values in self.columns.items()}
        first = next(iter(arrays))
        if arrays[first].ndim == 0:
            raise InputError(f"column {first!r} has no axis of rows; give one value a row")
        rows = len(arrays[first])
        object.__setattr__(self, "columns", checked_columns(arrays, rows, reserved=(ROW_ID,)))
        if self.ids is None:
            return
        if len(self.ids) != rows:
            raise InputError(f"{len(self.ids)} ids for {rows} rows; give one a row")
        seen: set[str] = set()
        for name in self.ids:
            if name in seen:
                raise InputError(f"two rows have the id {name!r}; give each its own")
            seen.add(name)
        object.__setattr__(self, "ids", tuple(self.ids))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __repr__(self) -> str:
        return f"ArrayRows({len(self)} rows of {', '.join(self.columns)})"

    @cached_property
    def fingerprint(self) -> str:
        """What these rows are: their ids and every bit of their columns."""
        return digest(map(json.dumps, self.names(range(len(self)))), self.columns)

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many rows there are, and one more than the largest value of each index column."""
        return sizes_of(len(self), self.columns)

    def batch(self, indices: Ids) -> dict[str, np.ndarray]:
        """The rows with these ids, under leading axes as theirs; -1 gives a filler row."""
        row_id = checked_ids(indices, len(self))
        return {**gathered(self.columns, row_id), ROW_ID: row_id}

    def names(self, indices: Sequence[int] | Int[np.ndarray, " rows"]) -> list[str]:
        """Stable ids of the rows with these ids; "" for -1."""
        name = "row:{}".format if self.ids is None else lambda number: self.ids[number - 1]
        return [name(int(position) + 1) if position >= 0 else "" for position in indices]

    def select(self, indices: Int[np.ndarray, " chosen"] | Sequence[int]) -> ArrayRows:
        """A data set of its own from the rows with these ids, with new row ids."""
        chosen = np.asarray(indices, dtype=np.int64)
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return ArrayRows(columns, self.names(chosen))

    def joined(self, *others: ArrayRows) -> ArrayRows:
        """A data set of these rows and those of others behind them; indices keep their values.

        Raises:
            InputError: the data sets have not the same columns, or two rows have the same id.
        """
        every = (self, *others)
        columns = joined_columns([each.columns for each in every])
        return ArrayRows(columns, [name for each in every for name in each.names(range(len(each)))])


def is_index(name: str) -> bool:
    """Whether a column counts something: its name ends in `_id`."""
    return name.endswith("_id")


def filler_of(name: str) -> int:
    """What a filler row holds in a column."""
    return -1 if is_index(name) else 0


def checked_columns(
    columns: Mapping[str, Any], rows: int, reserved: Iterable[str], positions: int | None = None
) -> Mapping[str, np.ndarray]:
    """Columns as arrays of numbers, indices as int32.

    Args:
        columns: by name.
        rows: how many rows there are.
        reserved: names that belong to the rows themselves.
        positions: tokens of a row, where columns may have one number a row or one a token alone.

    Raises:
        InputError: one does not fit; the message names it.
    """
    checked: dict[str, np.ndarray] = {}
    for name, given in columns.items():
        values = np.asarray(given)
        if name in reserved:
            raise InputError(
                f"column {name!r} would overwrite the rows' own {name}; choose another name (the rows' own: "
                f"{', '.join(sorted(reserved))})"
            )
        if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
            raise InputError(f"column {name!r} holds {values.dtype}, no numbers; turn texts into indices")
        if values.ndim == 0 or len(values) != rows:
            raise InputError(
                f"column {name!r} has the shape {values.shape}; give it one entry for each of {rows} rows"
            )
        if positions is not None and values.shape not in ((rows,), (rows, positions)):
            raise InputError(
                f"column {name!r} has the shape {values.shape}; give one number a row, ({rows},), or one a token, "
                f"({rows}, {positions})"
            )
        checked[name] = _index(name, values) if is_index(name) else values
    return MappingProxyType(checked)


def checked_ids(indices: Ids, rows: int) -> Int32[np.ndarray, "*batches rows"]:
    """Row ids as an array.

    Raises:
        ValueError: there is no such row.
    """
    row_id = np.asarray(indices, dtype=np.int32)
    if row_id.size and not -1 <= row_id.min() <= row_id.max() < rows:
        raise ValueError(f"positions must lie in -1 .. {rows - 1}, got {row_id.min()} .. {row_id.max()}")
    return row_id


def gathered(
    columns: Mapping[str, np.ndarray], row_id: Int32[np.ndarray, "*batches rows"]
) -> dict[str, np.ndarray]:
    """The columns of some rows, and fillers where there is none."""
    found = {}
    for name, values in columns.items():
        real = np.reshape(row_id >= 0, row_id.shape + (1,) * (values.ndim - 1))
        filler = np.asarray(filler_of(name), values.dtype)
        # A data set without rows has no row 0 to stand in for fillers.
        stand_in = values if len(values) else np.zeros((1, *values.shape[1:]), values.dtype)
        found[name] = np.where(real, stand_in[row_id], filler)
    return found


def sizes_of(rows: int, columns: Mapping[str, np.ndarray]) -> Mapping[str, int]:
    """How many of each there are: rows, and one more than the largest value of each index column."""
    indices = {name: int(values.max(initial=-1)) + 1 for name, values in columns.items() if is_index(name)}
    return {ROW_ID: rows, **indices}


def joined_columns(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The columns of several data sets, one behind the other.

    Raises:
        InputError: one data set lacks a column that another one has, or has another shape of it.
    """
    for each in parts[1:]:
        different = sorted(set(each) ^ set(parts[0]))
        if different:
            raise InputError(
                f"column {different[0]!r} is not in all of the data sets to be joined; add it to the others"
            )
        for name, values in each.items():
            if values.shape[1:] != parts[0][name].shape[1:]:
                raise InputError(
                    f"column {name!r} has rows of the shapes {parts[0][name].shape[1:]} and {values.shape[1:]}; "
                    "join rows of one shape"
                )
    return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]}


def digest(lines: Iterable[str], arrays: Mapping[str, np.ndarray]) -> str:
    """A fingerprint of lines and arrays: texts, names, shapes, types and every bit of the values."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode() + b"\n")
    for name in sorted(arrays):
        values = arrays[name]
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name} {values.shape} {values.dtype.name}\n".encode())
        found.update(np.ascontiguousarray(little).tobytes())
    return found.hexdigest()[:16]


def _index(name: str, values: np.ndarray) -> Int32[np.ndarray, "..."]:
    if not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"column {name!r} is an index, but holds {values.dtype}; give whole numbers")
    if values.size and not -1 <= values.min() <= values.max() < np.iinfo(np.int32).max:
        raise InputError(
            f"column {name!r} is an index, but holds {values.min()} .. {values.max()}; count from 0, -1 for none"
        )
    return values.astype(np.int32)
