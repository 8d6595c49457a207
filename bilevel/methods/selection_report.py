"""What an epoch chose: a move that measures it, and the section of the report that shows all epochs so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from bilevel.curate.rules import CANDIDATES, latest
from bilevel.data import Dataset, text_rows
from bilevel.methods.subsets import response_lengths
from bilevel.report.row_groups import group_rows
from bilevel.report.sections import Chart, Section, Table
from bilevel.schedule.context import Context
from bilevel.schedule.moves import Move
from bilevel.schedule.state import RunState
from bilevel.weighting.preferences import rank_correlation

SECTION = "What each epoch chose"
_PREFIX = "selection "
_BINS = np.linspace(0.0, 1.6, 17)
_BIN, _RATIO, _TAKEN = "share at ratio ", "ratio of ", "chosen of "
_WORDS = {
    "measured": "rows measured",
    "unknown": "rows without a ratio",
    "too_hard": "share too hard (ratio at the limit or above)",
    "mean_ratio": "mean ratio",
    "drift": "mean change of the ratio since it was last measured",
    "agreement": "rank correlation with what was last measured",
    "chosen": "rows chosen",
    "kept": "of them chosen in the epoch before",
    "new_hard": "share of the hardest that were not hard at the start",
    "length": "response tokens of a chosen row",
    "length_of_all": "response tokens of any row",
    "cut": "chosen rows whose response was cut",
}


@dataclass(frozen=True)
class WatchSelection(Move):
    """Measures what an epoch chose: one epoch's line of the run's section, and of its metrics.

    The hardest rows are as many as were chosen, those of the highest ratio below the limit among the candidates, now
    and as the same rows were first measured.

    Attributes:
        epoch: whose line this is, from 1.
        chosen: the set.
        measured: the signals of complexity, the last one this epoch's.
        before: the set of the epoch before; none for the first.
        limit: ratio from which a row is too hard.
        over: which data set.
    """

    epoch: int
    chosen: str
    measured: tuple[str, ...]
    before: tuple[str, ...] = ()
    limit: float = 1.0
    over: str = "pool"

    @property
    def reads(self) -> tuple[str, ...]:
        sets = (f"set:{name}" for name in (CANDIDATES, self.chosen, *self.before))
        return (f"data:{self.over}", *(f"signal:{name}" for name in self.measured), *sets)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"result:{_PREFIX}{self.epoch}",)

    def run(self, state: RunState, context: Context) -> RunState:
        columns = {name: state.column(name, self.over) for name in self.measured}
        chosen, candidates = (state.rows(name, self.over) for name in (self.chosen, CANDIDATES))
        rows, now = state.data[self.over], columns[self.measured[-1]]
        line = _ratios(now[candidates], self.limit)
        if self.before:
            earlier = {name: columns[name] for name in self.measured[:-1]}
            line |= _changes(
                columns[self.measured[0]], latest(earlier), now, candidates, len(chosen), self.limit
            )
            line["kept"] = float(np.mean(np.isin(chosen, state.rows(self.before[0], self.over))))
        line |= _taken(rows, chosen, now)
        end = getattr(context.model.tokenizer, "eos_token_id", None)
        line["cut"] = float(np.sum(_cut(rows, chosen, end)))
        state = state.with_result(f"{_PREFIX}{self.epoch}", line)
        logged = {name: value for name, value in line.items() if name in _WORDS}
        context.log(state.lower_steps, {f"selection/{name}": value for name, value in logged.items()})
        context.show(selection_section(state.results))
        return state


def _ratios(values: Float[np.ndarray, " some"], limit: float) -> dict[str, float]:
    """How the ratios of the candidates are distributed."""
    known = values[np.isfinite(values)]
    counts, _ = np.histogram(np.minimum(known, _BINS[-1] - 1e-6), _BINS)
    shares = counts / max(1, len(known))
    line = {"measured": float(len(known)), "unknown": float(len(values) - len(known))}
    line |= (
        {"too_hard": float(np.mean(known >= limit)), "mean_ratio": float(np.mean(known))}
        if len(known)
        else {}
    )
    middles = (_BINS[1:] + _BINS[:-1]) / 2
    return line | {f"{_BIN}{middle:.2f}": float(share) for middle, share in zip(middles, shares, strict=True)}


def _changes(
    first: Float[np.ndarray, " rows"],
    before: Float[np.ndarray, " rows"],
    now: Float[np.ndarray, " rows"],
    candidates: Int[np.ndarray, " some"],
    count: int,
    limit: float,
) -> dict[str, float]:
    """How the ratios of the candidates moved, and whether other rows are the hardest."""
    line = {}
    both = candidates[np.isfinite(now[candidates]) & np.isfinite(before[candidates])]
    if len(both):
        line["drift"] = float(np.mean(now[both] - before[both]))
    agreement = rank_correlation(now[both], before[both])
    if agreement is not None:
        line["agreement"] = agreement
    hardest, at_first = (_hardest(values, candidates, count, limit) for values in (now, first))
    if len(hardest):
        line["new_hard"] = float(np.mean(~np.isin(hardest, at_first)))
    return line


def _hardest(
    values: Float[np.ndarray, " rows"], rows: Int[np.ndarray, " some"], count: int, limit: float
) -> Int[np.ndarray, " hardest"]:
    able = rows[values[rows] < limit]
    return able[np.argsort(-values[able], kind="stable")][:count]


def _taken(
    rows: Dataset, chosen: Int[np.ndarray, " chosen"], now: Float[np.ndarray, " rows"]
) -> dict[str, float]:
    """How long the chosen rows are; by label, what their ratio is and how many are chosen."""
    lengths = response_lengths(rows)
    line = {"chosen": float(len(chosen)), "length": float(np.mean(lengths[chosen]))}
    line["length_of_all"] = float(np.mean(lengths))
    texts = text_rows(rows)
    labels = {name: [row.label(name) for row in texts] for name in ("fault", "hard", "duplicate")}
    for group in group_rows(labels, len(rows)):
        known = now[group.positions]
        if np.isfinite(known).any():
            line[f"{_RATIO}{group.name}"] = float(np.nanmean(known))
        line[f"{_TAKEN}{group.name}"] = float(np.mean(np.isin(chosen, group.positions)))
    return line


def _cut(rows: Dataset, ids: Int[np.ndarray, " some"], end: int | None) -> Bool[np.ndarray, " some"]:
    """Whose response lacks its end token: it was longer than the limit, and what is known is about its beginning."""
    batch = rows.batch(ids)
    last = np.max(np.where(batch["loss_mask"], np.arange(batch["tokens"].shape[1]), 0), axis=1)
    found = np.take_along_axis(batch["tokens"], last[:, None], axis=1)[:, 0]
    return found != end if end is not None else np.zeros(len(ids), bool)


def selection_section(results: Mapping[str, Mapping[str, float]]) -> Section:
    """The section of a report that shows what every epoch so far chose.

    Args:
        results: of a run's state; what `WatchSelection` did not write is passed over.
    """
    found = ((name.removeprefix(_PREFIX), line) for name, line in results.items() if name.startswith(_PREFIX))
    epochs = sorted((int(number), line) for number, line in found)
    text = (
        "The complexity ratio is the perplexity of a response with its prompt over that without: at 0 the prompt says "
        "it all, at 1 the prompt does not help. Rows at the limit or above are too hard and left out."
    )
    share = [line["new_hard"] for _, line in epochs if "new_hard" in line]
    if share:
        text += (
            f" After the first epoch {share[0]:.0%} of the hardest candidates were not among the hardest at the "
            "start: what choosing anew can gain."
        )
    series = {
        f"epoch {number}": [
            (float(name.removeprefix(_BIN)), line[name]) for name in line if name.startswith(_BIN)
        ]
        for number, line in epochs
    }
    over = "The ratios of the rows that an epoch measured; the last point holds all above."
    lengths = {
        _WORDS[name]: [(number, line[name]) for number, line in epochs]
        for name in ("length", "length_of_all")
    }
    charts = [
        Chart("Distribution of the complexity ratio", series, x="ratio", y="share of the rows", caption=over),
        Chart("Length of the chosen", lengths, x="epoch", y="tokens", kind="bars"),
    ]
    headings = [f"epoch {number}" for number, _ in epochs]
    lines = [[words, *(line.get(name) for _, line in epochs)] for name, words in _WORDS.items()]
    tables = [Table("By epoch", ["", *headings], lines)]
    groups = [name.removeprefix(_TAKEN) for name in epochs[0][1] if name.startswith(_TAKEN)] if epochs else []
    if len(groups) > 1:
        for title, prefix in (("Mean ratio by label", _RATIO), ("Share of the chosen by label", _TAKEN)):
            by_group = [[group, *(line.get(f"{prefix}{group}") for _, line in epochs)] for group in groups]
            tables.append(Table(title, ["rows", *headings], by_group))
    return Section(SECTION, text, charts, tables)
