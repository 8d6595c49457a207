"""IterIT: rows chosen anew for every epoch, by how hard they are for the model now and how different from each other.

Jia et al., Boosting LLM via Learning from Data Iteratively and Selectively, arXiv 2412.17365.

    S_COM(i) = PPL(y_i | x_i) / PPL(y_i)             how little the prompt helps; rows at 1 or above are too hard
    S_DIV(i) = sum over n-grams t of y_i:  w_t tfidf(i, t)
    epoch e  measures S_COM of the pool; takes K rows, one after the other, by S_COM S_DIV, where w_t <- gamma w_t for
             every n-gram of a row that was taken; trains one epoch on them

    paper        here
    K            share of the rows       gamma   decay
    alpha        pool_factor             pool    candidates: the first alpha K rows of the last order, all rows at first

Optimizer and learning rate go on through all epochs: it is one training run whose rows change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bilevel.core.ranges import check_ranges
from bilevel.curate.greedy import Lengths
from bilevel.curate.order import Form
from bilevel.curate.rules import CANDIDATES, ORDER, everything, first_of_order, hard_and_diverse, next_order
from bilevel.curate.selection import Counted
from bilevel.curate.signals import Ratio, complexity
from bilevel.methods.baselines import UpperFunction
from bilevel.methods.method import Data, Method
from bilevel.methods.selection_report import WatchSelection
from bilevel.methods.subsets import Epochs, SubsetSettings
from bilevel.methods.training import TrainingSettings
from bilevel.schedule import Choose, Move, Round, Score


@dataclass(frozen=True)
class IterITSettings(SubsetSettings):
    """Settings of IterIT.

    Attributes:
        mode: `iterative`, or `baseline`, which keeps the first epoch's rows.
        pool_factor: alpha; 1 measures and considers all rows in every epoch.
        decay: gamma, in [0, 1]; the authors take 0.1, and 0 for data of one domain.
        score: `complexity_and_diversity`, or `complexity` alone.
        ratio: S_COM of perplexities, or of losses.
        limit: S_COM from which a row is too hard.
        ngrams: of the words of a response, or of its tokens, for texts of digits or of languages without spaces.
        longest_ngram: words or tokens of the longest.
        lengths: `as_they_are`, or divided by the `root` of a row's n-grams, since S_DIV all but counts them.
        order: of the rows between epochs, `clean` or the `author`'s, see `bilevel.curate.reordered`.
        carry: whether n-grams that earlier epochs used up stay so.
    """

    mode: Literal["iterative", "baseline"] = "iterative"
    pool_factor: float = 3.0
    decay: float = 0.1
    score: Literal["complexity_and_diversity", "complexity"] = "complexity_and_diversity"
    ratio: Ratio = "perplexity"
    limit: float = 1.0
    ngrams: Counted = "words"
    longest_ngram: int = 3
    lengths: Lengths = "as_they_are"
    order: Form = "clean"
    carry: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            self,
            ("pool_factor", self.pool_factor >= 1, "1 or more"),
            ("decay", 0 <= self.decay <= 1, "in [0, 1]"),
            ("limit", self.limit > 0, "positive"),
            ("longest_ngram", self.longest_ngram >= 1, "1 or more"),
        )


def iterit(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    settings: IterITSettings = IterITSettings(),
    upper: UpperFunction | None = None,
    signals: Path | None = None,
    name: str = "iterit",
) -> Method:
    """IterIT as a method.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: `pool`, the rows to choose from; the others are only watched.
        training: how the model is trained; its steps give way to those of the epochs.
        settings: what this method adds.
        upper: what is watched on trusted rows; by default their mean loss.
        signals: folder where complexities are kept by content, for other runs to find; by default the run's own.
        name: of the method.

    Returns:
        The method, of one round an epoch. Epoch e leaves the signals `complexity_e` and the set `chosen_e`; `weight`
        says how often a row was trained on.

    Raises:
        InputError: a share that is not one row.
    """
    epochs = Epochs(model, data, training, settings, upper)
    choices = settings.epochs if settings.mode == "iterative" else 1
    chosen = [f"chosen_{min(epoch, choices)}" for epoch in range(1, settings.epochs + 1)]
    pool = len(data["pool"])
    looked_at = pool if settings.pool_factor == 1 else min(int(settings.pool_factor * epochs.rows), pool)

    def choice(epoch: int) -> tuple[Move, ...]:
        into, earlier = chosen[epoch - 1], tuple(chosen[: epoch - 1])
        measured = tuple(f"complexity_{each}" for each in range(1, epoch + 1))
        pick = hard_and_diverse(
            epochs.rows,
            settings.ngrams,
            settings.carry,
            said_of=f"epoch {epoch}: ",
            decay=settings.decay,
            limit=settings.limit,
            diverse=settings.score == "complexity_and_diversity",
            longest=settings.longest_ngram,
            lengths=settings.lengths,
        )
        order = next_order(into, settings.order, settings.limit)
        return (
            Score(measured[-1], complexity(settings.ratio), rows=CANDIDATES, folder=signals),
            Choose(pick, into=into, signals=measured, sets=(CANDIDATES, *earlier)),
            WatchSelection(epoch, into, measured, earlier[-1:], settings.limit),
            Choose(order, into=ORDER, signals=measured, sets=(ORDER, CANDIDATES, into)),
            Choose(first_of_order(looked_at), into=CANDIDATES, sets=(ORDER,)),
        )

    rounds = []
    for epoch, rows in enumerate(chosen, start=1):
        begin = (Choose(everything, into=ORDER), Choose(everything, into=CANDIDATES)) if epoch == 1 else ()
        rounds.append(
            Round((*begin, *(choice(epoch) if epoch <= choices else ()), epochs.train(rows, epoch == 1)))
        )
    return epochs.method(name, tuple(rounds), tuple(chosen), chosen[-1])
