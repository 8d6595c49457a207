"""Compiling functions that close over large arrays: frozen parameters, reference models, tables."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from bilevel.core.tree import PyTree


class _Program(NamedTuple):
    run: Any
    constants: Sequence[Array]
    structure: Any


class Compiled:
    """A function under `jax.jit` whose closed-over arrays are arguments of the program instead of parts of it.

    `jax.jit` writes every array that a function closes over into the program's text. For the frozen base of an
    adapter these are gigabytes: copied, hashed for the compilation cache, compiled into the executable, and held a
    second time on the device. Here they are found by tracing and handed over at each call, where they stay in the
    one place that they have, split over devices or not.

    An array that is closed over only by another jitted function inside still becomes part of the program.

    Args:
        function: of positional arguments, which are traced, and keyword arguments, which are static.
        donate_argnums: positions whose memory the result may take; no closed-over array is ever donated.
        out_shardings: where results are to lie: a tree like the results, or a prefix of it; None, as a whole or as a
            leaf, leaves the choice to the compiler.
    """

    def __init__(
        self,
        function: Callable[..., PyTree],
        donate_argnums: Sequence[int] = (),
        out_shardings: PyTree = None,
    ):
        self._function = function
        self._out_shardings = out_shardings
        self._donated = tuple(number + 1 for number in donate_argnums)
        self._programs: dict[Hashable, _Program] = {}

    def __call__(self, *arguments: PyTree, **static: Hashable) -> PyTree:
        run, constants, structure = self._program(arguments, static)
        return jax.tree.unflatten(structure, run(constants, *arguments))

    def lower(self, *arguments: PyTree, **static: Hashable) -> jax.stages.Lowered:
        """The program before compilation; arguments may be `jax.ShapeDtypeStruct`s."""
        run, constants, _ = self._program(arguments, static)
        return run.lower(constants, *arguments)

    def _program(self, arguments: tuple[PyTree, ...], static: dict[str, Hashable]) -> _Program:
        leaves, structure = jax.tree.flatten(arguments)
        key = (structure, tuple(map(_signature, leaves)), tuple(sorted(static.items())))
        if key not in self._programs:
            self._programs[key] = self._traced(arguments, static)
        return self._programs[key]

    def _traced(self, arguments: tuple[PyTree, ...], static: dict[str, Hashable]) -> _Program:
        def function(*arguments: PyTree) -> PyTree:
            return self._function(*arguments, **static)

        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        jaxpr = traced.jaxpr

        def run(constants: Sequence[Array], *arguments: PyTree) -> list[Array]:
            return jax.core.eval_jaxpr(jaxpr, constants, *jax.tree.leaves(arguments))

        run.__name__ = getattr(self._function, "__name__", "function")
        jitted = jax.jit(
            run, donate_argnums=self._donated, out_shardings=_leaves_of_prefix(self._out_shardings, shapes)
        )
        return _Program(jitted, traced.consts, jax.tree.structure(shapes))


def _leaves_of_prefix(prefix: PyTree, tree: PyTree) -> list[Any] | None:
    """For each leaf of a tree what a prefix says of it."""
    if prefix is None:
        return None
    whole = jax.tree.map(_Given, prefix, is_leaf=lambda x: x is None)
    return [leaf.sharding for leaf in jax.tree.leaves(jax.tree.broadcast(whole, tree))]


class _Given:
    """A leaf of a prefix, None included, which would be no leaf by itself."""

    def __init__(self, sharding: Any):
        self.sharding = sharding


def _signature(leaf: Any) -> Hashable:
    """What a program depends on; the jit beneath looks at placements itself."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype
    return jax.typeof(leaf)
