"""Moves that keep a weight network as a folder, and that go on with one which was kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from bilevel.core.tree import PyTree
from bilevel.data import Tokenizer
from bilevel.schedule.context import Context
from bilevel.schedule.moves import Move
from bilevel.schedule.state import RunState
from bilevel.storage.snapshots import FOLDER, SnapshotInfo, write_snapshot


@dataclass(frozen=True)
class WriteSnapshot(Move):
    """Writes the network that the solver moves to `snapshots/stage-N` of the run's folder.

    A run without a folder keeps none.

    Attributes:
        info: what the snapshot says of itself; its step is the state's.
        tokenizer: whose tokens the network reads.
    """

    info: SnapshotInfo
    tokenizer: Tokenizer

    @property
    def reads(self) -> tuple[str, ...]:
        return ("solver",)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"snapshot:{self.info.stage}",)

    def run(self, state: RunState, context: Context) -> RunState:
        assert state.solver is not None  # the driver has checked that some Train comes first
        if context.folder is not None and context.layout.first:
            folder = context.folder / FOLDER / f"stage-{self.info.stage}"
            info = replace(self.info, step=state.step)
            write_snapshot(folder, info, context.layout.gather(state.solver.outer.inner), self.tokenizer)
        return state


@dataclass(frozen=True)
class Adopt(Move):
    """Puts given values in the place of the solver's outer variables: the network of another run's next stage.

    Attributes:
        outer: the values.
    """

    outer: PyTree

    @property
    def reads(self) -> tuple[str, ...]:
        return ("solver",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("solver",)

    def run(self, state: RunState, context: Context) -> RunState:
        assert state.solver is not None  # the driver has checked that some Train comes first
        # Copies, for the next step is given the solver's arrays for good, and the move may run again.
        outer = context.layout.replicate(jax.tree.map(jnp.array, self.outer))
        solver = state.solver.replace(outer=state.solver.outer._replace(inner=outer))
        return replace(state, solver=solver)
