"""The derivative of whole runs: against unrolling over all steps, and against central differences of complete runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core.lower_steps import Iterate
from bilevel.core.unroll import (
    Above,
    Plan,
    Reached,
    ReplayError,
    RunPrograms,
    TrainingRun,
    differentiate_run,
    footprint,
    unroll,
    whole_run,
)
from bilevel.core.unroll.measured import compiled
from bilevel.core.unroll.shelf import DeviceShelf, HostShelf, Progress
from bilevel.storage.run_shelf import DiskJournal, DiskShelf
from tests.float64.test_unroll import (
    OPTIMIZERS,
    PLAIN,
    POOL,
    READING,
    SIZES,
    estimated,
    loss_after_training,
    setting,
)
from tests.zoo import finite_difference, in_micro_batches, relative_error

STEPS = 5


class Whole:
    """A run of the small network, and what its derivative needs."""

    def __init__(self, problem, name, pieces=1, queries=None):
        self.problem, self.optimizer = problem, OPTIMIZERS[name]
        self.given = setting(name, steps=STEPS)
        params, state, self.outer, lower, self.upper_batch = self.given
        cut = [in_micro_batches(batch, pieces) for batch in lower]
        self.stacked = {key: np.stack([batch[key] for batch in cut]) for key in cut[0]}
        memory = problem.weighting.init(jax.random.key(0), SIZES)[1]
        self.run = TrainingRun(Reached(Iterate(params, state), memory), STEPS, self.batches)
        self.programs = RunPrograms(problem, self.optimizer, queries=queries is not None)
        self.queries = queries
        self.above = jax.jit(self.derivative_above)

    def batches(self, begin, end):
        return {key: value[begin:end] for key, value in self.stacked.items()}

    def derivative_above(self, inner):
        def value(inner, batch):
            return self.problem.upper(None, inner, batch).value

        if self.queries is None:
            return Above(jnp.zeros(POOL), jax.grad(value)(inner, self.upper_batch))
        rows = jax.tree.map(lambda x: x[: self.queries, None], self.upper_batch)
        return Above(jnp.zeros((self.queries, POOL)), jax.vmap(jax.grad(value), (None, 0))(inner, rows))

    def derivative(self, plan, run=None, **options):
        return differentiate_run(self.programs, self.outer, run or self.run, self.above, plan, **options)


@functools.cache
def plain() -> Whole:
    return Whole(PLAIN, "clipped adamw")


@functools.cache
def unrolled():
    one = plain()
    return estimated(PLAIN, one.optimizer, unroll(), *one.given)


PLANS = {
    "all records at once": Plan(STEPS, STEPS),
    "all records put away": Plan(STEPS, 2, "records"),
    "all starts": Plan(STEPS, 2, starts=3),
    "three starts of five": Plan(STEPS, 1, starts=3),
    "two starts of five": Plan(STEPS, 1, starts=2),
    "one start of five": Plan(STEPS, 1, starts=1),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_schedule_gives_what_unrolling_all_steps_gives(name):
    done = []
    found = plain().derivative(PLANS[name], tell=lambda what, segment: done.append(what))
    assert relative_error(found.gradient, unrolled()) < 1e-10
    assert found.segment_runs == PLANS[name].segment_runs == len(done) - PLANS[name].segments
    assert found.finite
    assert np.all(np.isfinite(found.cotangents))


def test_the_estimator_of_one_program_gives_the_same():
    one = plain()
    for segment in (None, 2, 20):
        found = estimated(PLAIN, one.optimizer, whole_run(segment), *one.given)
        assert relative_error(found, unrolled()) < 1e-10


def test_a_window_takes_the_state_before_it_as_a_constant():
    one = plain()
    reference = estimated(PLAIN, one.optimizer, unroll(last_steps=3), *one.given)
    for plan in (Plan(STEPS, 2, starts=2, last=3), Plan(STEPS, 2, "records", last=3)):
        found = one.derivative(plan)
        assert relative_error(found.gradient, reference) < 1e-10
        assert np.isnan(found.cotangents).tolist() == [True] * 2 + [False] * 3


RUNS = {
    "clipped adamw": (PLAIN, "clipped adamw", 1),
    "momentum with a schedule": (PLAIN, "momentum with a schedule", 1),
    "accumulated": (PLAIN, "clipped adamw", 2),
    "a weighting with a memory": (READING, "clipped adamw", 1),
}


@functools.cache
def by_differences(problem, name):
    given = setting(name, steps=STEPS)
    value = loss_after_training(problem, OPTIMIZERS[name], *given)
    return finite_difference(value, given[2])


@pytest.mark.parametrize(
    "run",
    [pytest.param(run, marks=[pytest.mark.slow] if "momentum" in run else []) for run in RUNS],
)
def test_it_is_the_derivative_of_complete_runs(run):
    problem, name, pieces = RUNS[run]
    one = plain() if run == "clipped adamw" else Whole(problem, name, pieces)
    found = one.derivative(Plan(STEPS, 2, starts=2))
    assert relative_error(found.gradient, by_differences(problem, name)) < 1e-6


@functools.cache
def questioned() -> Whole:
    return Whole(PLAIN, "clipped adamw", queries=3)


def test_several_queries_at_once_are_each_alone():
    one = plain()
    together = questioned().derivative(Plan(STEPS, 2, starts=3))
    assert together.gradient.shape == (3, POOL)
    assert together.cotangents.shape == (3, STEPS)
    mean = sum(together.gradient) / 3
    given = (*one.given[:4], jax.tree.map(lambda x: x[:3], one.upper_batch))
    assert relative_error(mean, estimated(PLAIN, one.optimizer, unroll(), *given)) < 1e-10


class Killed(BaseException):
    """Ends a derivative wherever it is, as a signal would."""


@pytest.mark.parametrize(
    ("keeps", "starts", "last"), [("starts", 2, None), ("starts", 2, 4), ("records", 1, None)]
)
def test_killed_anywhere_it_goes_on_to_the_same_bits(keeps, starts, last, tmp_path):
    one, plan = plain(), Plan(STEPS, 1, keeps, starts, "disk", last)
    whole = one.derivative(plan)
    for left in range(0, plan.segment_runs + plan.segments, 2):
        folder, asked = tmp_path / str(left), 0

        def batches(begin, end, left=left):
            nonlocal asked
            asked += 1
            # The first time one batch is asked for to look at its types.
            if asked == left + 2:
                raise Killed
            return one.batches(begin, end)

        with pytest.raises(Killed):
            one.derivative(
                plan,
                one.run._replace(batches=batches),
                shelf=DiskShelf(folder / "s"),
                journal=DiskJournal(folder / "j"),
            )
        found = one.derivative(plan, shelf=DiskShelf(folder / "s"), journal=DiskJournal(folder / "j"))
        np.testing.assert_array_equal(found.gradient, whole.gradient)
        np.testing.assert_array_equal(found.cotangents, whole.cotangents)
        np.testing.assert_array_equal(found.signals, whole.signals)


@pytest.mark.parametrize("shelf", [DeviceShelf, HostShelf])
def test_what_is_kept_in_memory_is_let_go_in_the_end(shelf):
    one, kept = plain(), shelf()
    found = one.derivative(Plan(STEPS, 1, starts=3), shelf=kept)
    np.testing.assert_array_equal(found.gradient, one.derivative(Plan(STEPS, 1, starts=1)).gradient)
    assert not kept.names


def test_a_batch_that_is_another_on_replay_ends_it():
    one, asked = plain(), set()

    def batches(begin, end):
        again, _ = (begin in asked), asked.add(begin)
        found = one.batches(begin, end)
        return {**found, "y": found["y"] + 1e-9} if again and begin == 2 else found

    with pytest.raises(ReplayError, match="steps 2 to 2 came out differently"):
        one.derivative(Plan(STEPS, 1, starts=2), one.run._replace(batches=batches))


def test_runs_without_a_derivative_are_refused():
    one = plain()
    lion = RunPrograms(PLAIN, optax.lion(1e-2))
    start = Reached(Iterate(one.given[0], optax.lion(1e-2).init(one.given[0])), ())
    with pytest.raises(ValueError, match="sign-based"):
        differentiate_run(lion, one.outer, one.run._replace(start=start), one.above, Plan(STEPS, 2))

    def rounded(params, batch):
        losses = PLAIN.row_losses(params, batch)
        return losses.replace(total=losses.total.astype(jnp.bfloat16).astype(jnp.float64))

    half = RunPrograms(PLAIN._replace(row_losses=rounded), one.optimizer)
    with pytest.raises(ValueError, match="computes in bfloat16"):
        differentiate_run(half, one.outer, one.run, one.above, Plan(STEPS, 2))
    with pytest.raises(ValueError, match="the plan is of 3 steps, the run of 5"):
        one.derivative(Plan(3, 2))


def test_progress_is_read_as_it_was_written(tmp_path):
    journal = DiskJournal(tmp_path)
    assert journal.read(()) is None
    tree = {"a": jnp.arange(3.0), "b": (jax.random.key(3), np.float32(2))}
    journal.write(Progress({0: "x", 4: "y"}, 2, tree))
    digests, left, found = DiskJournal(tmp_path).read(tree)
    assert (digests, left) == ({0: "x", 4: "y"}, 2)
    np.testing.assert_array_equal(found["a"], tree["a"])
    assert jax.random.key_data(found["b"][0]).tolist() == jax.random.key_data(tree["b"][0]).tolist()


@pytest.mark.parametrize("queries", [1, 3])
def test_a_plan_says_the_bytes_that_the_programs_take(queries):
    one = plain() if queries == 1 else questioned()
    given = (one.programs, one.outer, one.run)
    weighs = footprint(*given, queries)
    taken, below = compiled(*given, STEPS, queries)
    used = max(
        part.argument_size_in_bytes + part.output_size_in_bytes + part.temp_size_in_bytes
        for part in (taken, below)
    )
    assert Plan(STEPS, STEPS).bytes_in("device", weighs) == pytest.approx(used, rel=0.1)
