"""The batches of a step: draws cut into lower steps and micro-batches, packed, placed on the devices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bilevel.core.problem import Batch
from bilevel.data import Dataset, EncodedRows, PackedRows, Packing, Units, arrange_rows
from bilevel.errors import InputError
from bilevel.layout import Layout
from bilevel.schedule.draws import Draws, Stream, stream_key, stream_seed

Keep = Callable[[Hashable, Callable[[], Any]], Any]

_PLANNED_BATCHES = 2048
"""Batches that packing looks at; among later ones hardly any is fuller than all of these."""


@dataclass(frozen=True)
class BatchPlan:
    """How a step's batches are cut.

    Attributes:
        rows: rows of one lower batch, over all micro-batches and devices.
        upper_rows: the same of an upper batch; None means as many.
        accumulate: micro-batches that a batch is cut into.
        lower_steps: lower batches a solver step.
        packing: whether several rows share a sequence; row losses must then read `token_row`, as
            `bilevel.objectives` does.
        upper_packing: the same of upper batches; None means as `packing`.
        together: name of the index whose rows stay in one lower batch (`question_id`: a question with all its
            answers); "row_id" draws rows one by one.
    """

    rows: int = 32
    upper_rows: int | None = None
    accumulate: int = 1
    lower_steps: int = 1
    packing: Packing = "off"
    upper_packing: Packing | None = None
    together: str = "row_id"

    def __post_init__(self) -> None:
        for name, rows in (("batch", self.rows), ("upper batch", self.upper_size)):
            if rows < 1 or self.accumulate < 1 or rows % self.accumulate:
                raise ValueError(
                    f"a {name} of {rows} rows cannot be cut into {self.accumulate} equal micro-batches"
                )
        if self.lower_steps < 1:
            raise ValueError(f"lower_steps must be at least 1, not {self.lower_steps}")

    @property
    def upper_size(self) -> int:
        """Rows of an upper batch."""
        return self.rows if self.upper_rows is None else self.upper_rows

    @property
    def padded(self) -> BatchPlan:
        """The same plan with a row a sequence."""
        return replace(self, packing="off", upper_packing="off")

    def for_model(self, packs: bool) -> BatchPlan:
        """The plan for a model that keeps the rows of a sequence apart, or does not: then a row a sequence.

        Raises:
            InputError: rows are to be packed for a model that would mix them up.
        """
        if packs:
            return self
        if "on" in (self.packing, self.upper_packing):
            raise InputError(
                "packing on: this model does not keep the rows of a sequence apart; give its logits an argument named "
                "segments, or leave packing off"
            )
        return self.padded


class Batches(NamedTuple):
    """The batches of one level in one move.

    Attributes:
        at: from the number of a step, counted from where its cursor stood, to the batches of the step.
        rows: the data set, packed or padded.
        drawn: how rows are drawn.
        key: of the cursor.
        a_step: batches a step.
    """

    at: Callable[[int], Batch]
    rows: Dataset
    drawn: Draws
    key: str
    a_step: int = 1

    def cursor(self, steps: int) -> int:
        """Where the cursor stands after so many steps."""
        return self.drawn.after(steps * self.a_step)


def lower_batches(
    dataset: Dataset,
    ids: np.ndarray | None,
    plan: BatchPlan,
    seed: int,
    layout: Layout,
    *,
    start: Callable[[str], int] = lambda key: 0,
    stream: Stream = "lower",
    by_passes: bool = False,
    keep: Keep = lambda key, make: make(),
) -> Batches:
    """Lower batches by solver step: arrays [lower steps, micro-batches, ...], drawn without replacement.

    Args:
        dataset: the rows.
        ids: those of them that are drawn; None for all.
        plan: how batches are cut.
        seed: the run's.
        layout: where they are placed.
        start: from a cursor's key to how much was drawn before.
        stream: what is drawn for.
        by_passes: see `Draws`.
        keep: `(key, make) -> what was made`: remembers how rows were packed, which every method of a run asks for.

    Raises:
        InputError: there is nothing to draw from, the batch is larger than the data set, or cannot hold whole groups.
    """
    units = units_of(dataset, ids, plan)
    # A chosen set may be smaller than a batch, and is then filled up; of a whole data set it is a mistake.
    if ids is None and plan.rows > len(dataset):
        raise InputError(_larger(plan.rows, len(dataset)))
    if plan.rows % units.width:
        raise InputError(
            f"a batch of {plan.rows} rows cannot hold whole groups of {units.width} rows of one {plan.together}; "
            f"give a multiple of {units.width}"
        )
    key = stream_key(stream, dataset, ids)
    begun = Draws(units, plan.rows // units.width, stream_seed(seed, stream), 0, by_passes)
    # Lower batches alone have two sizes: with two of upper ones, too, a step would be compiled four times.
    pieces = (plan.lower_steps, plan.accumulate)
    rows = keep(
        ("lower", key, begun.batch, begun.seed, by_passes, pieces, plan.packing),
        lambda: _arranged(dataset, begun, pieces, plan.packing, layout, two_sizes=True),
    )
    drawn = replace(begun, start=start(key))

    def at(step: int) -> Batch:
        numbers = range(step * plan.lower_steps, (step + 1) * plan.lower_steps)
        found = np.reshape([drawn.ids(number) for number in numbers], (len(numbers), plan.accumulate, -1))
        return layout.batch(rows, found)

    return Batches(at, rows, drawn, key, plan.lower_steps)


def upper_batches(
    dataset: Dataset,
    plan: BatchPlan,
    seed: int,
    layout: Layout,
    *,
    start: Callable[[str], int] = lambda key: 0,
    keep: Keep = lambda key, make: make(),
) -> Batches:
    """Upper batches by solver step: arrays [micro-batches, ...]; arguments as those of `lower_batches`."""
    size = plan.upper_size
    if size > len(dataset):
        raise InputError(_larger(size, len(dataset)))
    key = stream_key("upper", dataset, None)
    begun = Draws(Units(len(dataset)), size, stream_seed(seed, "upper"))
    packing = plan.upper_packing or plan.packing
    pieces = (1, plan.accumulate)
    rows = keep(
        ("upper", key, size, begun.seed, pieces, packing),
        lambda: _arranged(dataset, begun, pieces, packing, layout),
    )
    drawn = replace(begun, start=start(key))

    def at(step: int) -> Batch:
        return layout.batch(rows, np.reshape(drawn.ids(step), (plan.accumulate, -1)))

    return Batches(at, rows, drawn, key)


def units_of(dataset: Dataset, ids: np.ndarray | None, plan: BatchPlan) -> Units:
    """What a plan draws from some rows of a data set (None for all): rows, or groups that stay together.

    Raises:
        InputError: there are no rows, or the data set has no such index.
    """
    chosen = len(dataset) if ids is None else np.asarray(ids)
    if ids is not None and not len(ids):
        raise InputError("there are no rows to draw from: the set that training is restricted to is empty")
    if plan.together == "row_id":
        return Units(chosen)
    if plan.together not in dataset.columns:
        raise InputError(
            f"rows have no {plan.together} to be kept together by; they are counted by {', '.join(dataset.sizes)}"
        )
    return Units(chosen, dataset.columns[plan.together])


def in_turn(
    dataset: Dataset, size: int, layout: Layout, packing: Packing = "off", ids: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields `(row ids, batch)` over rows in order; the last batch is completed by filler rows, id -1.

    Args:
        dataset: the rows.
        size: rows of a batch.
        layout: where batches are placed.
        packing: whether several rows share a sequence.
        ids: which rows; None for all.
    """
    chosen = np.arange(len(dataset)) if ids is None else np.asarray(ids)
    filled = np.full(-(-len(chosen) // size) * size, -1, np.int32)
    filled[: len(chosen)] = chosen
    batches = filled.reshape(-1, size)
    if not len(batches):
        return
    arranged = _packed(dataset, batches, packing, layout)
    for some in batches:
        yield some, layout.batch(arranged, some)


def first_rows(dataset: Dataset, size: int, layout: Layout, packing: Packing = "off") -> Batch:
    """One batch of the first rows, completed by filler rows."""
    ids = np.where(np.arange(size) < len(dataset), np.arange(size), -1)
    return layout.batch(_packed(dataset, ids[None], packing, layout), ids)


def packing_notice(pool: Dataset, trusted: Dataset, plan: BatchPlan, seed: int, layout: Layout) -> str:
    """A line for the user on how batches are packed, "" where nobody asked for it.

    Args:
        pool: rows of the lower level.
        trusted: rows of the upper level.
        plan: how batches are cut.
        seed: the run's.
        layout: devices that share each batch's rows.
    """
    if plan.packing == "off" and plan.upper_packing in (None, "off"):
        return ""
    lower = lower_batches(pool, None, plan, seed, layout).rows
    upper = upper_batches(trusted, plan, seed, layout).rows
    said = []
    for name, rows, size in (("lower", lower, plan.rows), ("upper", upper, plan.upper_size)):
        size //= plan.accumulate
        if isinstance(rows, PackedRows):
            sizes = " or ".join(map(str, rows.sequence_counts))
            said.append(
                f"{name} batches of {size} rows in {sizes} sequences ({rows.share:.0%} of the tokens)"
            )
        else:
            said.append(f"{name} batches padded")
    return f"packing: {', '.join(said)}"


def _arranged(
    dataset: Dataset,
    drawn: Draws,
    pieces: tuple[int, int],
    packing: Packing,
    layout: Layout,
    two_sizes: bool = False,
) -> Dataset:
    """Packs for the first batches of a stream, whatever part of a run this is: a resumed one sees the same sizes."""
    if packing == "off":
        return dataset
    steps = -(-_PLANNED_BATCHES // pieces[0])
    batches = np.reshape([drawn.ids(number) for number in range(steps * pieces[0])], (steps, *pieces, -1))
    return _packed(dataset, batches, packing, layout, two_sizes)


def _packed(
    dataset: Dataset, batches: np.ndarray, packing: Packing, layout: Layout, two_sizes: bool = False
) -> Dataset:
    if packing == "off":
        return dataset
    if not isinstance(dataset, EncodedRows):
        raise InputError("packing is for rows of tokens: leave it off for rows that are no text")
    return arrange_rows(dataset, batches, packing, layout.shares, two_sizes)


def _larger(rows: int, there_are: int) -> str:
    return f"batch size {rows} is larger than the data ({there_are} rows); lower it to at most {there_are} or add rows"
