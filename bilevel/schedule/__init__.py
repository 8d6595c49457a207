"""Schedules: rounds of moves over one run state, and the driver that runs them."""

from bilevel.schedule.batches import BatchPlan as BatchPlan
from bilevel.schedule.batches import packing_notice as packing_notice
from bilevel.schedule.driver import Schedule as Schedule
from bilevel.schedule.driver import check_schedule as check_schedule
from bilevel.schedule.driver import run_schedule as run_schedule
from bilevel.schedule.moves import Evaluate as Evaluate
from bilevel.schedule.moves import Move as Move
from bilevel.schedule.moves import Score as Score
from bilevel.schedule.moves import Select as Select
from bilevel.schedule.moves import Snapshot as Snapshot
from bilevel.schedule.moves import Weigh as Weigh
from bilevel.schedule.saving import CheckpointSaver as CheckpointSaver
from bilevel.schedule.state import Context as Context
from bilevel.schedule.state import Position as Position
from bilevel.schedule.state import RunState as RunState
from bilevel.schedule.state import Saver as Saver
from bilevel.schedule.state import Stopped as Stopped
from bilevel.schedule.train import NonFiniteError as NonFiniteError
from bilevel.schedule.train import Train as Train
