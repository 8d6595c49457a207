"""What was measured of rows, kept by content: never measured twice, by whichever run, round or attempt asks."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from bilevel.core.tree import PyTree
from bilevel.layout import Layout
from bilevel.model import Model
from bilevel.storage.fingerprint import fingerprint_tree
from bilevel.storage.ledger import Ledger, key


class MeasuredRows:
    """Values of rows by the key of their content, appended piece by piece; a file for a measure and a model.

    Rows of one content are measured once, in pieces of those that nobody has measured yet. A piece is one line of a
    `Ledger`: a process that is killed while it writes leaves all of it or nothing, and whoever goes on cuts the rest
    into the same pieces. Values depend in their last bits on the company that rows were measured in; so they stay.

    Args:
        path: the file.
        layout: the processes: the first of them reads and writes, all know what it knows.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._layout = layout
        self._ledger = Ledger(path) if layout.first else None
        self._rows: dict[str, Float[np.ndarray, " columns"]] = {}
        if self._ledger is not None:
            for piece in self._ledger.known(self._ledger).values():
                values = np.frombuffer(base64.b64decode(piece["float32"]), "<f4")
                self._rows.update(zip(piece["rows"], values.reshape(len(piece["rows"]), -1), strict=True))

    def all_of(
        self,
        contents: Sequence[str],
        size: int,
        measure: Callable[[Int[np.ndarray, " piece"]], Float[np.ndarray, "piece columns"]],
        before_each: Callable[[], None] = lambda: None,
    ) -> Float[np.ndarray, "rows columns"]:
        """The values of rows: those that are known, and what is measured now, and kept.

        Args:
            contents: what the values of each row depend on; at least one.
            size: rows of a piece.
            measure: from places among these rows to their values.
            before_each: called before each piece; it may raise, and nothing is lost.
        """
        keys = [key(content) for content in contents]
        first = {name: place for place, name in reversed(list(enumerate(keys)))}
        waits = np.array([name not in self._rows and first[name] == at for at, name in enumerate(keys)])
        # Processes go the same way, whatever each knows itself.
        waiting = np.flatnonzero(self._layout.told(waits))
        for start in range(0, len(waiting), size):
            before_each()
            some = waiting[start : start + size]
            self._add([keys[place] for place in some], np.asarray(measure(some), np.float32))
        columns = int(self._layout.told(np.array(len(self._rows[keys[0]]) if keys[0] in self._rows else 0)))
        empty = np.zeros(columns, np.float32)
        return self._layout.told(np.stack([self._rows.get(name, empty) for name in keys]))

    def _add(self, keys: list[str], values: Float[np.ndarray, "piece columns"]) -> None:
        if self._ledger is not None:
            text = base64.b64encode(values.astype("<f4").tobytes()).decode()
            self._ledger.append(key(*keys), {"rows": keys, "float32": text})
        self._rows.update(zip(keys, values, strict=True))

    def close(self) -> None:
        """Lets other processes have the file."""
        if self._ledger is not None:
            self._ledger.close()


def file_of(folder: Path, measure: str, model: Model, params: PyTree) -> Path:
    """The file of a measure by a model: its parameters, those that it stands on, its architecture.

    Args:
        folder: where such files are.
        measure: its name.
        model: the model's functions.
        params: its parameters.
    """
    name = re.sub(r"[^a-z0-9]+", "_", measure.lower()).strip("_")
    made_of = (model.fingerprint(params), fingerprint_tree(model.base), str(model.config))
    return folder / f"{name}-{key(*made_of)[:16]}.jsonl"
