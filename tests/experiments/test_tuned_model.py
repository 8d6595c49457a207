"""What of a model is trained: adapters beside frozen parameters, types, attention paths, placement, folders."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from bilevel.core import Compiled
from bilevel.core.estimators import EstimatorName, EstimatorSettings
from bilevel.core.solver import Solver
from bilevel.errors import InputError
from bilevel.layout.devices import data_mesh, replicate
from bilevel.methods import BDSSettings, TrainingSettings, bds
from bilevel.objectives import mean_loss
from bilevel.schedule import Train
from bilevel.schedule.batches import BatchPlan, LowerBatches, UpperBatches
from experiments.inputs import Inputs, load_inputs
from experiments.options import CorpusOptions, DataOptions, LoraOptions, ModelOptions
from experiments.tuned_model import compute_of
from models.attention.exact import exact
from models.attention.fused import KERNELS
from models.errors import ModelError
from tests.experiments.model_folder import write_model

# The simplest rule serves here: what it leaves out of Adam is beside the point.
pytestmark = pytest.mark.filterwarnings("ignore:identity differentiates a gradient step")

ADAPTER = LoraOptions(rank=2, alpha=4.0, targets=("all",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_model(path)
    return path


def load(folder, lora=LoraOptions(), **options) -> Inputs:  # noqa: B008  (frozen)
    corpus = CorpusOptions(rows=48, valid=16, test=16)
    return load_inputs(DataOptions(), corpus, ModelOptions(model=folder, **options), seed=0, lora=lora)


def one_step(inputs: Inputs, estimator: EstimatorName = "penalty"):
    """The state before and after one step of BDS, and the step's program."""
    training = TrainingSettings(steps=4, batch_rows=16, upper_rows=16)
    pool, validation = inputs.sets.encoded["pool"], inputs.sets.encoded["validation"]
    upper = mean_loss(inputs.first_order)
    _, ((*_, train, _, _, _),) = bds(
        inputs.row_losses,
        upper,
        len(pool),
        training,
        BDSSettings(),
        first_order=inputs.first_order,
        hypergradient=EstimatorSettings(estimator),
    )
    assert isinstance(train, Train)
    solver: Solver = train.solver
    mesh, plan = data_mesh(), BatchPlan(16, 16)
    lower = LowerBatches(pool, np.arange(len(pool)), plan, 0, mesh)(0)
    upper_batch = UpperBatches(validation, plan, 1, mesh)(0)
    begun = replicate(solver.init(jax.random.key(0), inputs.params), mesh)
    step = Compiled(solver.step)
    return begun, step(begun, lower, upper_batch)[0], step.lower(begun, lower, upper_batch)


def moved(inner, start):
    """An adapter far enough from its start that the model says something else."""
    keys = iter(jax.random.split(jax.random.key(3), 100))
    return jax.tree.map(lambda x, y: x + 0.3 * jax.random.normal(next(keys), y.shape), inner, start)


def logits(inputs: Inputs, inner) -> jax.Array:
    batch = inputs.sets.encoded["test"].batch([0, 1])
    return inputs.objective_model.logits(inner, batch)


def test_the_solver_holds_adapters_alone_and_the_base_is_handed_to_its_program(folder):
    inputs = load(folder, ADAPTER)
    begun, after, program = one_step(inputs)
    sizes = [x.size for x in jax.tree.leaves(inputs.model.base)]
    adapter = sum(x.size for x in jax.tree.leaves(inputs.params))
    # Two copies with two moments each, a logit a row, and counters; the base is nowhere among them.
    held = sum(x.size for x in jax.tree.leaves((begun.inner, begun.extra)))
    assert 6 * adapter <= held < 6 * adapter + 10 < sum(sizes)
    assert all(
        np.any(factors["lora_b"] != 0) for factors in after.inner.inner["layers"]["attention"].values()
    )
    text = program.as_text()
    table = inputs.model.base["embedding"]["table"]
    assert f"tensor<{'x'.join(map(str, table.shape))}xf32>" in text
    assert 'dense<"0x' not in text  # how arrays would stand in it


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["penalty", "identity"])
def test_shared_out_parameters_train_like_copies(estimator, folder):
    whole, split = (one_step(load(folder, shard=shard), estimator) for shard in (False, True))
    chex.assert_trees_all_close(split[1].inner.inner, whole[1].inner.inner, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(split[1].outer.inner, whole[1].outer.inner, rtol=1e-3, atol=1e-5)
    for state in split[:2]:
        kernel = state.inner.inner["layers"]["mlp"]["up"]["kernel"]
        moments = state.inner.optimizer[1][0].mu["layers"]["mlp"]["up"]["kernel"]
        assert (
            kernel.addressable_shards[0].data.shape == moments.addressable_shards[0].data.shape == (2, 2, 24)
        )


def test_a_frozen_base_is_held_in_the_type_of_the_products_and_adapters_are_not(folder):
    inputs = load(folder, ADAPTER, dtype="bfloat16", shard=True, remat="full", attention="blockwise")
    assert {x.dtype for x in jax.tree.leaves(inputs.model.base)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(inputs.params)} == {jnp.dtype(jnp.float32)}
    assert inputs.compute == dataclasses.replace(inputs.compute, first_order="blockwise", forward="blockwise")
    batch = jax.tree.map(jnp.asarray, inputs.sets.encoded["pool"].batch(list(range(8))))
    close = load(folder, ADAPTER).row_losses(inputs.params, batch).means
    np.testing.assert_allclose(inputs.row_losses(inputs.params, batch).means, close, rtol=0.02)
    assert "rank 2 on query, key, value, output, gate, up, down" in inputs.sets.notices[-1]


def test_all_parameters_stay_float32_under_bfloat16_products(folder):
    inputs = load(folder, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(inputs.params)} == {jnp.dtype(jnp.float32)}
    assert inputs.model.base is None
    batch = jax.tree.map(jnp.asarray, inputs.sets.encoded["pool"].batch(list(range(8))))
    gradient = jax.grad(lambda p: inputs.row_losses(p, batch).weighted().total)(inputs.params)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folders_hold_the_adapter_or_the_merged_model(dtype, folder, tmp_path):
    inputs = load(folder, ADAPTER)
    trained = moved(inputs.params, inputs.params)
    expected = logits(inputs, trained)
    assert np.abs(expected - logits(inputs, inputs.params)).max() > 0.1

    narrow = load(folder, ADAPTER, dtype=dtype)
    narrow.model.write(tmp_path / "adapter", trained, narrow.tokenizer)
    again = load(folder, LoraOptions(adapter=tmp_path / "adapter"))
    chex.assert_trees_all_equal(again.params, trained)
    np.testing.assert_allclose(logits(again, again.params), expected, atol=1e-6)
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()

    # Whatever the run computed in, the adapter is merged into the numbers that the model was stored with.
    dataclasses.replace(narrow.model, merge=True).write(tmp_path / "merged", trained, narrow.tokenizer)
    merged = load(tmp_path / "merged")
    np.testing.assert_allclose(logits(merged, merged.params), expected, atol=1e-4)


def test_an_adapter_of_several_ranks_goes_on_only_where_it_is_merged(folder, tmp_path):
    config = models.read_config(folder)
    wide = models.LoraConfig(3, 4.0, ("query",))
    adapter = models.lora.init(config, wide, jax.random.key(0))
    models.write_adapter(tmp_path, config, wide, adapter)
    described = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(
        described.replace('"r": 3', '"r": 2').replace('"rank_pattern": {}', '"rank_pattern": {"q_proj": 3}')
    )
    with pytest.raises(InputError, match="several ranks cannot be written again: add --merge"):
        load(folder, LoraOptions(adapter=tmp_path))
    merging = load(folder, LoraOptions(adapter=tmp_path, merge=True))
    assert merging.params["layers"]["attention"]["query"]["lora_a"].shape == (2, 16, 3)


@pytest.mark.parametrize(
    ("asked", "length", "first_order", "forward"),
    [
        ("auto", 512, "fused", "exact"),
        ("auto", 1024, "fused", "blockwise"),
        ("fused", 1024, "fused", "blockwise"),
        ("exact", 1024, "exact", "exact"),
        ("blockwise", 64, "blockwise", "blockwise"),
    ],
)
def test_attention_paths(asked, length, first_order, forward, monkeypatch):
    config = models.DecoderConfig(vocab_size=8, width=16, layers=1, heads=2, kv_heads=1, mlp_width=8)
    if asked == "auto":
        without = compute_of(ModelOptions(), config, length)
        assert (without.first_order, without.forward) == (forward, forward)
    monkeypatch.setitem(KERNELS, jax.default_backend(), exact)
    found = compute_of(ModelOptions(attention=asked), config, length)
    assert (found.first_order, found.forward) == (first_order, forward)


def test_steps_with_a_kernel_take_another_path_for_row_scores(folder, monkeypatch):
    plain = one_step(load(folder, ADAPTER), "identity")[1]
    monkeypatch.setitem(KERNELS, jax.default_backend(), exact)
    inputs = load(folder, ADAPTER)
    assert inputs.compute.first_order == "fused"
    chex.assert_trees_all_close(
        one_step(inputs, "identity")[1].outer.inner, plain.outer.inner, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "--lora.rank must be at least 1, not 0"),
        ({"rank": 2, "alpha": 0.0}, "--lora.alpha must be positive"),
        ({"alpha": 3.0}, "--lora.alpha is of a fresh adapter: give it a rank with --lora.rank"),
        ({"targets": ("all",)}, "--lora.targets is of a fresh adapter"),
        ({"rank": 2, "adapter": "there"}, "leave one out"),
        ({"merge": True}, "--merge needs an adapter"),
    ],
)
def test_contradictory_options_of_adapters_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        LoraOptions(**options)


@pytest.mark.parametrize(
    ("lora", "options", "said"),
    [
        (LoraOptions(rank=2, targets=("w_proj",)), {}, "no linear map of a layer is called 'w_proj'"),
        (LoraOptions(adapter="nowhere"), {}, "nowhere: no adapter_config.json"),
        (
            LoraOptions(),
            {"attention": "fused"},
            "--attention fused: this device has no kernel for heads of 8 in",
        ),
    ],
)
def test_adapters_and_paths_that_there_are_not_are_refused(lora, options, said, folder):
    with pytest.raises(ModelError, match=said):
        load(folder, lora, **options)


def test_an_adapter_of_a_random_model_must_be_merged():
    with pytest.raises(InputError, match="name one with --model, or write both with --merge"):
        load(None, ADAPTER)
    inputs = load(None, dataclasses.replace(ADAPTER, merge=True))
    assert set(inputs.params) == {"layers"}


def test_a_width_that_the_devices_cannot_share_is_refused(tmp_path):
    write_model(tmp_path, width=12)
    with pytest.raises(ModelError, match="width 12 cannot be divided over 8 devices"):
        load(tmp_path, shard=True)
