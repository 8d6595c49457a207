"""Bilevel problems: two pure functions, or a row loss, a weighting and one pure function.

    minimise over outer   upper(outer, inner*(outer))
    where                 inner*(outer) minimises lower(outer, .)

*Lower* and *upper* name functions, *inner* and *outer* the variables that they move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import struct
from jaxtyping import Array, Float

from bilevel.core.losses import Mean, Reduction, RowLosses
from bilevel.core.tree import PyTree

Batch = Mapping[str, Any]
"""Arrays by name. A batch of rows has `row_id`, int32 [..., rows], -1 for the filler rows."""

Sizes = Mapping[str, int]
"""How many there are of what an index counts: `{"row_id": rows, "question_id": questions}`."""

NO_SIZES: Sizes = MappingProxyType({})

CameFrom = Mapping[str, Any]
"""By index name, integers [new]: for each new row (question, source) the old one whose state it takes, -1 for none."""


@dataclass(frozen=True)
class OutputLoss:
    """A loss of outputs: says where a model ends and its loss begins, so that Gauss-Newton products exist.

    It stands wherever the plain function would: `RowProblem(OutputLoss(logits, losses), ...)`,
    `Problem(OutputLoss(outputs, loss), upper)`. The loss should be convex in the outputs; terms of the inner
    variables themselves (a ridge) join by making these variables outputs too.

    Attributes:
        outputs: `(inner, batch) -> tree`.
        loss: `(outputs, batch) -> RowLosses` as a row loss, `(outer, outputs, batch) -> Mean` as a lower level.
    """

    outputs: Callable[[PyTree, Batch], PyTree]
    loss: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """The whole: `(inner, batch)` for rows, `(outer, inner, batch)` for a lower level."""
        *outer, inner, batch = arguments
        return self.loss(*outer, self.outputs(inner, batch), batch)


class Problem(NamedTuple):
    """The general form.

    Attributes:
        lower: `(outer, inner, batch) -> Mean`, what the inner variables minimise. An `OutputLoss` allows
            Gauss-Newton products.
        upper: `(outer, inner, batch) -> Mean`, what the outer variables minimise.
    """

    lower: Callable[[PyTree, PyTree, Batch], Mean]
    upper: Callable[[PyTree, PyTree, Batch], Mean]


class Seen(struct.PyTreeNode):
    """What a lower step saw of its batch: what a weighting may remember.

    Attributes:
        batch: the batch, with its micro-batch axis.
        losses: of its rows, at the inner variables that the step began from; None for a general problem.
        value_losses: of the same rows at the copy that stands for the lower level's optimum; None in solvers
            without such a copy.
        step: of the solver.
    """

    batch: Batch
    losses: RowLosses | None
    value_losses: RowLosses | None
    step: Any


def keep_memory(memory: PyTree, seen: Seen) -> PyTree:
    """What `Weighting.update` is where nothing is remembered."""
    return memory


def as_it_is(outer: PyTree) -> PyTree:
    """What `Weighting.centred` is where no shift is free."""
    return outer


class Weighting(NamedTuple):
    """How outer variables become row weights.

    Attributes:
        init: `(key, sizes) -> (outer, memory)`. Memory is state that is not differentiated: ages, a table of row
            losses. Refuses sizes that a table which it closes over does not fit.
        weights: `(outer, memory, batch, losses) -> [...rows]`, of the *whole* batch with its micro-batch axis,
            since a softmax over a batch is no sum over micro-batches. Uniform weights are ones.
        update: `(memory, seen) -> memory`, after a lower step.
        needs_losses: whether `weights` reads the batch's `RowLosses` (gradient stopped); only then is the
            forward pass for them paid. Otherwise it gets None.
        tables: what follows rows when they come and go, and what may be sharded over them: prefix trees of outer
            variables and of memory that name the index which each leaf's first axis counts (`"row_id"`), "" for none.
        centred: `outer -> outer` at which the same weights come out, and what `init` gives a new row weighs what an
            average row weighs.
        factors: `(outer, memory, batch, losses) -> weights by name`, whose product is `weights`; None where there is
            one factor alone.
    """

    init: Callable[[Array, Sizes], tuple[PyTree, PyTree]]
    weights: Callable[[PyTree, PyTree, Batch, RowLosses | None], Float[Array, "*rows"]]
    update: Callable[[PyTree, Seen], PyTree] = keep_memory
    needs_losses: bool = False
    tables: tuple[PyTree, PyTree] = ("", "")
    centred: Callable[[PyTree], PyTree] = as_it_is
    factors: Callable[[PyTree, PyTree, Batch, RowLosses | None], dict[str, Array]] | None = None


class RowProblem(NamedTuple):
    """The form of every method on data: lower = mean over rows of w_i(outer) l_i(inner).

    Attributes:
        row_losses: `(inner, batch) -> RowLosses`. An `OutputLoss` allows Gauss-Newton products.
        weighting: from outer variables to row weights.
        upper: `(outer, inner, batch) -> Mean`, usually the loss on trusted data.
        outer_penalty: `(outer, memory, batch, losses) -> scalar`, added to the upper level on each lower batch: an
            entropy term of the batch's weights, say. `losses` are what the weighting's `weights` gets.
        reduction: what the lower loss is a mean of.
        first_order: the same as `row_losses` by means that have values and gradients alone (fused attention kernels),
            for the passes that take no more; None where `row_losses` serves them too.
    """

    row_losses: Callable[[PyTree, Batch], RowLosses]
    weighting: Weighting
    upper: Callable[[PyTree, PyTree, Batch], Mean]
    outer_penalty: Callable[[PyTree, PyTree, Batch, RowLosses | None], Float[Array, ""]] | None = None
    reduction: Reduction = "row"
    first_order: Callable[[PyTree, Batch], RowLosses] | None = None

    def general(self, memory: PyTree = ()) -> Problem:
        """The general form at a fixed memory, for estimators and checks that want two plain functions.

        The outer penalty has no place in it, because it depends on the lower level's batch.

        Raises:
            ValueError: if there is an outer penalty.
        """
        if self.outer_penalty is not None:
            raise ValueError("a problem with an outer penalty has no general form: set outer_penalty=None")

        def lower(outer: PyTree, inner: PyTree, batch: Batch) -> Mean:
            losses = self.row_losses(inner, batch)
            seen = jax.lax.stop_gradient(losses) if self.weighting.needs_losses else None
            weights = self.weighting.weights(outer, memory, batch, seen)
            return losses.weighted(weights, self.reduction)

        return Problem(lower, self.upper)
