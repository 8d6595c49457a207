"""A run's state as named arrays and plain notes, for a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bilevel.core.tree import PyTree
from bilevel.data import Dataset
from bilevel.errors import InputError
from bilevel.schedule.rounds import Schedule
from bilevel.schedule.state import Position, RowSet, RunState, Signal, Trained
from bilevel.schedule.train import Train

_START = "start"
_TUPLE, _KEYS = "tuple", "keys"
_FORMAT = 2
"""Goes up whenever notes of earlier versions can no longer be read."""


def take_apart(
    state: RunState, start: RunState, schedule: Schedule = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names every array of a state once.

    Arrays that several parts share (the model in training stands in the solver's state, too) get one name, and
    those that the run began with get none: whoever continues the run has them already. Data sets are named by their
    fingerprints: a row store holds them.

    Args:
        state: what to save.
        start: where the run began.
        schedule: what is running.

    Returns:
        Arrays by name, and everything else as what JSON can hold.

    Raises:
        TypeError: a model is no nest of dictionaries, lists and tuples.
    """
    names = _Names(start)
    solver = None if state.solver is None else names.by_path(state.solver, "solver")
    notes = {
        "format": _FORMAT,
        "models": {name: names.nested(model, f"models/{name}") for name, model in state.models.items()},
        "data": {name: dataset.fingerprint for name, dataset in state.data.items()},
        "drawn": dict(state.drawn),
        "solver": solver,
        "trained": _where_trained(state, schedule),
        "sets": {
            name: {"ids": names.of(found.ids, f"sets/{name}"), "data": found.data}
            for name, found in state.sets.items()
        },
        "signals": {
            name: {
                "values": names.of(found.values, f"signals/{name}/values"),
                "rounds": names.of(found.rounds, f"signals/{name}/rounds"),
                "data": found.data,
            }
            for name, found in state.signals.items()
        },
        "results": {
            name: {key: float(value) for key, value in found.items()} for name, found in state.results.items()
        },
        "round": state.round,
        "step": state.step,
        "lower_steps": state.lower_steps,
        "position": state.position._asdict(),
        "upper_loss": state.upper_loss,
        "pending": _stacked(state.pending, names),
    }
    return names.arrays, notes


def put_together(
    arrays: Mapping[str, Any],
    notes: Mapping[str, Any],
    start: RunState,
    schedule: Schedule,
    read_rows: Callable[[str], Dataset] | None = None,
) -> RunState:
    """The state that `take_apart` took apart.

    Args:
        arrays: arrays by name.
        notes: everything else.
        start: where the run began.
        schedule: what was running; its moves know the structure of a solver's state.
        read_rows: from a fingerprint to a data set that the run did not begin with.

    Raises:
        InputError: the state was written by another version: its notes, or the states of the schedule's solvers, have
            another structure; or its rows are gone.
    """
    if notes.get("format") != _FORMAT:
        raise _other_version("its format")
    found = {**arrays, **_Names(start).known}
    known = {dataset.fingerprint: dataset for dataset in start.data.values()}
    data = {}
    for name, fingerprint in notes["data"].items():
        if fingerprint not in known:
            if read_rows is None:
                raise _other_version(f"the rows of {name!r}")
            known[fingerprint] = read_rows(fingerprint)
        data[name] = known[fingerprint]
    trained = _trained_at(notes["trained"], start, schedule)
    solver = None
    if notes["solver"] is not None:
        if trained is None:
            raise _other_version("solver")
        like = jax.eval_shape(
            lambda key, model: trained.solver.init(key, model, data[trained.over].sizes),
            jax.random.key(0),
            start.models["base"],
        )
        solver = _by_path(notes["solver"], found, like, "solver")
    return RunState(
        models={name: _nested(model, found) for name, model in notes["models"].items()},
        data=data,
        drawn=notes["drawn"],
        sets={name: RowSet(found[kept["ids"]], kept["data"]) for name, kept in notes["sets"].items()},
        signals={
            name: Signal(found[kept["values"]], found[kept["rounds"]], kept["data"])
            for name, kept in notes["signals"].items()
        },
        results=notes["results"],
        solver=solver,
        trained=trained,
        round=notes["round"],
        step=notes["step"],
        lower_steps=notes["lower_steps"],
        position=Position(**notes["position"]),
        upper_loss=notes["upper_loss"],
        pending=_pending(notes["pending"], found),
    )


def _where_trained(state: RunState, schedule: Schedule) -> dict[str, Any] | None:
    """Which move of the schedule made the solver's state; None where it is the start's, or there is none."""
    if state.trained is None:
        return None
    for round, each in enumerate(schedule):
        for number, move in enumerate(each.moves):
            if isinstance(move, Train) and move.solver is state.trained.solver:
                return {"round": round, "move": number, "over": state.trained.over}
    return None


def _trained_at(where: Mapping[str, Any] | None, start: RunState, schedule: Schedule) -> Trained | None:
    if where is None:
        return start.trained
    try:
        move = schedule[where["round"]].moves[where["move"]]
    except IndexError:
        raise _other_version("its schedule") from None
    if not isinstance(move, Train):
        raise _other_version("its schedule")
    return Trained(move.solver, where["over"])


def _stacked(pending: Sequence[Mapping[str, Any]], names: _Names) -> list[dict[str, Any]]:
    """What a move under way keeps, pieces of one form as one with a leading axis, with their places.

    Hundreds of small reports would be thousands of small arrays. Steps that move other levels report other things.
    """
    groups: dict[Any, list[tuple[int, Mapping[str, Any]]]] = {}
    for place, piece in enumerate(jax.device_get(list(pending))):
        form = tuple((name, np.shape(value)) for name, value in piece.items())
        groups.setdefault(form, []).append((place, piece))
    return [
        {
            "places": [place for place, _ in group],
            "arrays": {
                name: names.of(
                    np.stack([np.asarray(piece[name]) for _, piece in group]),
                    f"pending/{number}/{name or '-'}",
                )
                for name in group[0][1]
            },
        }
        for number, group in enumerate(groups.values())
    ]


def _pending(groups: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    pieces: dict[int, dict[str, Any]] = {}
    for group in groups:
        for line, place in enumerate(group["places"]):
            pieces[place] = {name: np.asarray(found[key][line]) for name, key in group["arrays"].items()}
    return tuple(pieces[place] for place in sorted(pieces))


class _Names:
    """Arrays by name, each once, however many parts of a state hold it."""

    def __init__(self, start: RunState) -> None:
        self.arrays: dict[str, Any] = {}
        self.known: dict[str, Any] = {}
        self._names: dict[int, str] = {}
        for model, tree in start.models.items():
            for path, leaf in _paths(tree, f"{_START}/{model}").items():
                self.known[path] = leaf
                self._names.setdefault(id(leaf), path)

    def of(self, array: Any, name: str) -> str:
        """The name under which an array is kept."""
        if id(array) not in self._names:
            self._names[id(array)] = name
            self.arrays[name] = array
        return self._names[id(array)]

    def by_path(self, tree: PyTree, prefix: str) -> dict[str, str]:
        """Names of a tree's arrays, by their paths."""
        return {path: self.of(leaf, path) for path, leaf in _paths(tree, prefix).items()}

    def nested(self, tree: Any, prefix: str) -> Any:
        """A tree with names for arrays, as JSON."""
        if isinstance(tree, dict):
            if all(isinstance(key, str) for key in tree) and list(tree) not in ([_TUPLE], [_KEYS]):
                return {key: self.nested(item, f"{prefix}/{key}") for key, item in tree.items()}
            if all(
                isinstance(key, str | int) for key in tree
            ):  # a list of Flax's NNX counts its items in a dict
                items = [[key, self.nested(item, f"{prefix}/{key}")] for key, item in tree.items()]
                return {_KEYS: items}
        if type(tree) in (list, tuple):
            items = [self.nested(item, f"{prefix}/{number}") for number, item in enumerate(tree)]
            return items if type(tree) is list else {_TUPLE: items}
        if tree is None:
            return None
        if isinstance(tree, jax.Array | np.ndarray):
            return self.of(tree, prefix)
        raise TypeError(
            f"{prefix}: a model that is saved is a nest of dicts, lists and tuples, not {type(tree)}"
        )


def _nested(named: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(named, dict) and list(named) == [_TUPLE]:
        return tuple(_nested(item, arrays) for item in named[_TUPLE])
    if isinstance(named, dict) and list(named) == [_KEYS]:
        return {key: _nested(item, arrays) for key, item in named[_KEYS]}
    if isinstance(named, dict):
        return {key: _nested(item, arrays) for key, item in named.items()}
    if isinstance(named, list):
        return [_nested(item, arrays) for item in named]
    return None if named is None else arrays[named]


def _by_path(named: Mapping[str, str], arrays: Mapping[str, Any], like: PyTree, prefix: str) -> PyTree:
    paths = _paths(like, prefix)
    if different := sorted(paths.keys() ^ named.keys()):
        raise _other_version(different[0])
    found = [arrays[named[path]] for path in paths]
    for path, leaf, expected in zip(paths, found, paths.values(), strict=True):
        if np.shape(leaf) != np.shape(expected):
            raise _other_version(path)
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _paths(tree: PyTree, prefix: str) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf for path, leaf in leaves
    }


def _other_version(what: str) -> InputError:
    return InputError(
        f"the checkpoint was written by another version of this program (it differs in {what}); "
        "continue with that version, or begin a new run"
    )
