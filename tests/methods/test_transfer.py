"""Networks in stages: what a stage's end leaves, and what its snapshot does for another model and other rows."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowLosses, alternating, implicit, optimizer_aware
from bilevel.core.problem import RowProblem
from bilevel.data import EncodedRows, Row, train_tokenizer
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.methods import Method, TrainingSettings, transferred
from bilevel.methods.stages import Origin, taught_by_population, watched
from bilevel.model import Model
from bilevel.objectives import mean_loss
from bilevel.report.sections import read_sections, write_section
from bilevel.schedule import Context, Round, RunState, Steps, Train, moves_of, run_schedule
from bilevel.schedule.context import Kept
from bilevel.storage.snapshots import read_snapshots
from bilevel.weighting import EncoderSettings
from bilevel.weighting.network_description import NetworkDescription
from bilevel.weighting.statistics import separation_auc

TRAINING = TrainingSettings(steps=24, batch_rows=16, upper_rows=16, learning_rate=3e-2)
NETWORK = NetworkDescription(encoder=EncoderSettings(8, 1, 2, 8))
TOKENIZER = train_tokenizer(["one two three"], 264)
VOCABULARY = len(TOKENIZER.get_vocab())
WORDS, NO = 5, 9


def rows(name: str, seed: int, count: int, faulty: bool = True) -> EncodedRows:
    """Rows of a word, and as response the next word; every second one of a faulty set answers NO."""
    first = np.random.default_rng(seed).integers(0, WORDS, count)
    bad = faulty & (np.arange(count) % 2 > 0)
    answer = np.where(bad, NO, 10 + (first + 1) % WORDS)
    tokens = np.stack([10 + first, np.full(count, 8), answer], axis=1).astype(np.int32)
    mask = np.zeros(tokens.shape, bool)
    mask[:, 2] = True
    labels = [{"fault": "yes" if wrong else ""} for wrong in bad]
    named = (Row(f"{name}:{place + 1}", "?", "", "!", label) for place, label in enumerate(labels))
    return EncodedRows(tuple(named), tokens, np.ones_like(tokens), mask)


def parameters(width: int) -> dict:
    """A model that reads a row's first token."""
    first, second = jax.random.split(jax.random.key(0))
    return {
        "embedding": jax.random.normal(first, (VOCABULARY, width)),
        "head": jax.random.normal(second, (width, VOCABULARY)) / width,
    }


def row_losses(params: dict, batch: dict) -> RowLosses:
    logits = jax.nn.log_softmax(jnp.tanh(params["embedding"][batch["tokens"][:, 0]]) @ params["head"])
    loss = -jnp.take_along_axis(logits, batch["tokens"][:, 2:3], axis=1)[:, 0]
    count = jnp.any(batch["loss_mask"], axis=1).astype(loss.dtype)
    return RowLosses(jnp.where(count > 0, loss, 0.0), count)


MODEL = Model(row_losses)
KEPT = Kept()


def data(pool=None) -> dict:
    return {"pool": pool or rows("a", 0, 48), "validation": rows("v", 1, 32, faulty=False)}


def context(tmp_path=None) -> Context:
    def show(section):
        if tmp_path is not None:
            write_section(tmp_path, "dwm", section)

    layout = data_layout(jax.devices()[:1])
    return Context(MODEL, layout, show=show, folder=tmp_path, evaluation_rows=16, kept=KEPT)


def begin(width: int, pool=None) -> RunState:
    params = parameters(width)
    return RunState(models={"base": params, "current": params}, data=data(pool))


PROBLEM = RowProblem(row_losses, NETWORK.weighting(VOCABULARY), mean_loss(row_losses))
SOLVER = alternating(PROBLEM, TRAINING.optimizer(), optax.adam(2e-2), implicit(optimizer_aware()))


def in_stages(stages: int = 3, network_steps: int = 20) -> Method:
    learn = Train(PROBLEM, SOLVER, Steps(network_steps), TRAINING.plan, updates=("outer",))
    train = Train(PROBLEM, SOLVER, Steps(TRAINING.steps // stages), TRAINING.plan, updates=("inner",))
    schedule = (Round((train,)), *(Round((learn, train)) for _ in range(stages - 1)))
    return Method(PROBLEM, SOLVER, schedule)


ORIGIN = Origin(NETWORK, TOKENIZER, "plain", 8, 16, {"seed": 0})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run in three stages, the first of them uniform."""
    folder = tmp_path_factory.mktemp("run")
    method = watched(in_stages(), ORIGIN, warmup_stages=1)
    state = run_schedule(method.schedule, begin(8), context(folder))
    return folder, state


def test_each_stage_leaves_a_snapshot_and_its_preferences(trained):
    folder, state = trained
    snapshots = read_snapshots(folder)
    assert [(s.info.stage, s.info.stages, s.info.step) for s in snapshots] == [
        (1, 3, 8),
        (2, 3, 36),
        (3, 3, 64),
    ]
    assert not np.any(snapshots[0].parameters["head"]["kernel"])
    chex.assert_trees_all_equal(snapshots[2].parameters, jax.device_get(state.solver.outer.inner))
    assert {"loss_0", "loss_3", "weight_2", "weight_3", "length"} <= set(state.signals)
    assert "weight_1" not in state.signals
    assert state.results["preferences 3"]["effective_share"] < 1
    ((_, section),) = read_sections(folder)
    assert section.tables[0].columns == ["signal", "stage 2", "stage 3"]


def test_a_snapshot_weights_a_model_twice_as_wide_on_rows_it_never_saw(trained):
    folder, _ = trained
    pool = rows("b", 7, 40)
    last = read_snapshots(folder / "last")
    method = transferred(MODEL, data(pool), snapshots=last, training=TRAINING, top_share=0.5)
    state = run_schedule(method.schedule, begin(16, pool), context())
    weights = state.column("weight")
    faulty = np.array([bool(row.label("fault")) for row in pool.rows])
    assert separation_auc(weights[faulty], weights[~faulty]) > 0.9
    assert np.mean(weights) == pytest.approx(1.0, rel=1e-5)
    # The network is frozen: only the model has an optimizer with moments, and no step estimated a hypergradient.
    chex.assert_trees_all_equal(jax.device_get(state.solver.outer.inner), last[0].parameters)
    assert jax.tree.leaves(state.solver.outer.optimizer) == []
    assert state.step == TRAINING.steps
    losses = [state.column(name)[~faulty].mean() for name in ("loss_start", "loss_end")]
    assert losses[1] < losses[0]


def test_a_single_snapshot_waits_for_the_uniform_steps_that_its_run_began_with(trained):
    folder, _ = trained
    last = read_snapshots(folder / "last")
    schedule = transferred(MODEL, data(), snapshots=last, training=TRAINING).schedule
    assert [move.length for move in moves_of(schedule) if isinstance(move, Train)] == [Steps(8), Steps(16)]
    state = run_schedule(schedule[:1], begin(8), context())
    assert not np.any(state.solver.outer.inner["head"]["kernel"])


def test_stages_take_over_by_share_of_the_steps(trained):
    folder, _ = trained
    snapshots = read_snapshots(folder)
    schedule = transferred(MODEL, data(), snapshots=snapshots, training=TRAINING).schedule
    trains = [move for move in moves_of(schedule) if isinstance(move, Train)]
    assert [move.length for move in trains] == 3 * [Steps(8)]
    assert {move.updates for move in trains} == {("inner",)}
    assert len({id(move.solver) for move in trains}) == 1
    state, seen = begin(8), []
    for each in schedule:
        state = run_schedule((each,), state, context())
        seen.append(jax.device_get(state.solver.outer.inner))
    for found, snapshot in zip(seen, snapshots, strict=True):
        chex.assert_trees_all_equal(found, snapshot.parameters)
    with pytest.raises(InputError, match="2 steps cannot be shared out among 3 snapshots"):
        transferred(MODEL, data(), snapshots=snapshots, training=TrainingSettings(steps=2))


def test_a_population_teaches_the_network_beside_the_model():
    method = in_stages(stages=2, network_steps=4)
    taught = taught_by_population(method, members=2, reset_every=2)
    assert taught.solver is not method.solver
    state = run_schedule(taught.schedule, begin(8), context())
    members = state.solver.extra.members
    assert members.outer.optimizer[0].count.tolist() == [4, 4]
    # The model took its own steps at the network's weights, and none of the population's.
    assert state.step == TRAINING.steps + 4
    alone = run_schedule(method.schedule[:1], begin(8), context())
    beside = run_schedule(taught.schedule[:1], begin(8), context())
    chex.assert_trees_all_equal(alone.solver.inner, beside.solver.inner)
    assert float(jnp.abs(state.solver.outer.inner["head"]["kernel"]).max()) > 0


def test_a_population_needs_steps_of_the_network_alone():
    committed = Method(PROBLEM, SOLVER, (Round((Train(PROBLEM, SOLVER, Steps(4), TRAINING.plan),)),))
    with pytest.raises(InputError, match="must be virtual"):
        taught_by_population(committed, 2)
    with pytest.raises(InputError, match="at least one member"):
        taught_by_population(committed, 0)
