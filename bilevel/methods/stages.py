"""What is done at the end of each stage of a method that trains a weight network in stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bilevel.core import RowProblem, population
from bilevel.data import Tokenizer
from bilevel.errors import InputError
from bilevel.methods.method import Method
from bilevel.model import vocabulary_of
from bilevel.schedule import Move, Round, Score, Train, Weigh
from bilevel.schedule.preferences import MeasurePreferences, token_measure
from bilevel.schedule.snapshots import WriteSnapshot
from bilevel.storage.snapshots import SnapshotInfo, tokenizer_fingerprint
from bilevel.weighting.network_description import NetworkDescription


@dataclass(frozen=True)
class Origin:
    """What a run's snapshots say of themselves.

    Attributes:
        network: the network.
        tokenizer: whose tokens it reads.
        template: wording around the rows; "" for plain text.
        max_length: most tokens of a row.
        batch_rows: rows of a training batch.
        trained_on: what the run is about, plain values.
    """

    network: NetworkDescription
    tokenizer: Tokenizer
    template: str
    max_length: int
    batch_rows: int
    trained_on: Mapping[str, Any] = field(default_factory=dict)


def watched(method: Method, origin: Origin, warmup_stages: int = 0, alarm: float = 0.1) -> Method:
    """The method with stages that each end with a snapshot and a look at what the weights prefer.

    Every stage keeps the losses of all rows (`loss_1`, `loss_2`, ...) and from the first weighted one on their weights
    (`weight_2`, ...), as columns of the run's table of rows.

    Args:
        method: of one round a stage, its problem's weighting that of the network.
        origin: what the snapshots say of themselves.
        warmup_stages: first stages, whose weights are uniform and prefer nothing.
        alarm: effective sample size, as a share of the rows, below which weights count as collapsed.
    """
    vocab_size = vocabulary_of(origin.tokenizer)
    alone = not origin.network.scorer(vocab_size).joint
    info = SnapshotInfo(
        origin.network,
        vocab_size,
        tokenizer_fingerprint(origin.tokenizer),
        origin.template,
        origin.max_length,
        origin.batch_rows,
        stages=len(method.schedule),
        warmup_stages=warmup_stages,
        trained_on=origin.trained_on,
    )
    assert isinstance(method.problem, RowProblem)  # it weighs rows
    rounds: list[tuple[Move, ...]] = []
    for stage, each in enumerate(method.schedule, start=1):
        loss, weight = f"loss_{stage}", f"weight_{stage}"
        ends: list[Move] = [WriteSnapshot(replace(info, stage=stage), origin.tokenizer), Score(loss)]
        if stage > warmup_stages:
            ends.append(Weigh(method.problem.weighting, into=weight, as_one_batch=alone))
            ends.append(MeasurePreferences(stage, weight, loss, f"loss_{stage - 1}", alarm=alarm))
        rounds.append((*each.moves, *ends))
    rounds[0] = (Score("", token_measure()), Score("loss_0"), *rounds[0])
    return replace(method, schedule=tuple(Round(moves) for moves in rounds))


def taught_by_population(method: Method, members: int, reset_every: int = 0) -> Method:
    """The method with a network that learns from several inner models at once, as DataRater's does.

    The moves that train the network alone take a `population` of the solver, each member with its own lower
    batches; the moves that train the model go on as they are, beside it.

    Args:
        method: whose `Train` moves share its solver.
        members: inner models.
        reset_every: steps of the network after which a member begins anew, one member after another; 0 for never.

    Raises:
        InputError: a move trains model and network in the same steps, or a number is out of range.
    """
    try:
        taught = population(method.solver, members, reset_every)
    except ValueError as error:
        raise InputError(str(error)) from error

    def changed(move: Move) -> Move:
        if not isinstance(move, Train):
            return move
        if "outer" not in move.updates:
            return replace(move, solver=taught)
        if "inner" in move.updates:
            raise InputError(
                "a population trains its own models: the network's steps must be virtual for the run's model; add "
                "--dwm.model-steps virtual"
            )
        return replace(
            move, solver=taught, plan=replace(move.plan, lower_steps=members * move.plan.lower_steps)
        )

    rounds = tuple(Round(tuple(map(changed, each.moves)), each.skip_when) for each in method.schedule)
    return replace(method, solver=taught, schedule=rounds)
