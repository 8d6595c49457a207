"""A run's state as named arrays and plain notes, for a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np

from bilevel.core.solver import StepReport
from bilevel.core.tree import PyTree
from bilevel.errors import InputError
from bilevel.schedule.driver import Schedule
from bilevel.schedule.state import Context, Position, RunState, Signal
from bilevel.schedule.train import Train

_START = "start"
_TUPLE = "tuple"
_FORMAT = 1
"""Goes up whenever notes of earlier versions can no longer be read."""


def take_apart(state: RunState, start: RunState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Names every array of a state once.

    Arrays that several parts share (the model in training stands in the solver's state, too) get one name, and
    those that the run began with get none: whoever continues the run has them already.

    Args:
        state: what to save.
        start: where the run began.

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
        "solver": solver,
        "unlogged": [
            {"steps": steps, "arrays": names.by_path(stacked, f"unlogged/{number}")}
            for number, (steps, stacked) in enumerate(_stacked(state))
        ],
        "sets": {name: names.of(ids, f"sets/{name}") for name, ids in state.sets.items()},
        "signals": {
            name: {"values": names.of(signal.values, f"signals/{name}"), "round": signal.round}
            for name, signal in state.signals.items()
        },
        "results": {
            name: {key: float(value) for key, value in found.items()} for name, found in state.results.items()
        },
        "round": state.round,
        "step": state.step,
        "position": asdict(state.position),
        "upper_loss": state.upper_loss,
    }
    return names.arrays, notes


def put_together(
    arrays: Mapping[str, Any], notes: Mapping[str, Any], start: RunState, schedule: Schedule, context: Context
) -> RunState:
    """Returns the state that `take_apart` took apart.

    Args:
        arrays: arrays by name.
        notes: everything else.
        start: where the run began.
        schedule: what was running; its moves know the structure of a solver's state.
        context: what it ran with.

    Raises:
        InputError: the state was written by another version: its notes, or the states of the schedule's solvers, have
            another structure.
    """
    if notes.get("format") != _FORMAT:
        raise _other_version("its format")
    found = {**arrays, **_Names(start).known}
    position = Position(**notes["position"])
    models = {name: _nested(model, found) for name, model in notes["models"].items()}
    solver = _solver_at(schedule, position, start)
    state = RunState(
        models=models,
        sets={name: found[ids] for name, ids in notes["sets"].items()},
        signals={
            name: Signal(found[signal["values"]], signal["round"])
            for name, signal in notes["signals"].items()
        },
        results=notes["results"],
        solver=None if notes["solver"] is None else _by_path(notes["solver"], found, solver, "solver"),
        round=notes["round"],
        step=notes["step"],
        position=position,
        upper_loss=notes["upper_loss"],
    )
    return replace(state, unlogged=_unlogged(notes["unlogged"], found, state, schedule, context))


def _stacked(state: RunState) -> list[tuple[list[int], PyTree]]:
    """Reports of one structure as one report with a leading axis, with the numbers of their steps.

    Hundreds of small reports would be thousands of small arrays. Steps that move other levels report other things.
    """
    groups: dict[Any, list[tuple[int, PyTree]]] = {}
    first = state.step - len(state.unlogged) + 1
    for number, report in enumerate(jax.device_get(state.unlogged), start=first):
        groups.setdefault(jax.tree.structure(report), []).append((number, report))
    return [
        (
            [number for number, _ in group],
            jax.tree.map(lambda *leaves: np.stack(leaves), *(r for _, r in group)),
        )
        for group in groups.values()
    ]


def _unlogged(
    groups: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    state: RunState,
    schedule: Schedule,
    context: Context,
) -> tuple[StepReport, ...]:
    if not groups:
        return ()
    move = schedule[state.position.round][state.position.move]
    if not isinstance(move, Train):
        raise _other_version("unlogged")
    reports: dict[int, StepReport] = {}
    for place, group in enumerate(groups):
        like = move.seen_at(group["steps"][0], state.solver, state, context)
        stacked = _by_path(group["arrays"], found, like, f"unlogged/{place}")
        for line, number in enumerate(group["steps"]):
            reports[number] = jax.tree.map(lambda leaf, line=line: np.asarray(leaf[line]), stacked)
    return tuple(reports[number] for number in sorted(reports))


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
        if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
            return {key: self.nested(item, f"{prefix}/{key}") for key, item in tree.items()}
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
    if isinstance(named, dict) and list(named) == [_TUPLE] and isinstance(named[_TUPLE], list):
        return tuple(_nested(item, arrays) for item in named[_TUPLE])
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
        # Stacked reports have one axis more than a report.
        if np.shape(leaf)[np.ndim(leaf) - np.ndim(expected) :] != np.shape(expected):
            raise _other_version(path)
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _paths(tree: PyTree, prefix: str) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf for path, leaf in leaves
    }


def _solver_at(schedule: Schedule, position: Position, start: RunState) -> PyTree | None:
    """Shapes of the solver's state where a schedule stands."""
    solver = start.solver
    for number, moves in enumerate(schedule[: position.round + 1]):
        begun = position.move + (position.steps > 0)
        for move in moves if number < position.round else moves[:begun]:
            solver = move.solver_after(solver, start.models)
    return solver


def _other_version(what: str) -> InputError:
    return InputError(
        f"the checkpoint was written by another version of this program (it differs in {what}); "
        "continue with that version, or begin a new run"
    )
