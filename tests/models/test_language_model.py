"""A model to be trained: adapters beside frozen parameters, types, attention paths, placement, folders."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import models
from bilevel import as_model
from bilevel.core import Compiled
from bilevel.data import train_tokenizer
from models.attention.exact import exact
from models.attention.fused import KERNELS
from models.language_model import LanguageModel

LORA = models.LoraConfig(rank=2, alpha=4.0, targets=("all",))
VOCABULARY = 300
CONFIG = models.DecoderConfig(
    vocab_size=VOCABULARY, width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, init_std=0.25
)
SEGMENTS = np.repeat([[1] * 9 + [0] * 3], 8, axis=0).astype(np.int32)
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, VOCABULARY, (8, 12)).astype(np.int32),
    "segments": SEGMENTS,
    "loss_mask": (np.arange(12) > 3) & (SEGMENTS > 0),
    "row_id": np.arange(8, dtype=np.int32),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three", "two and two"], VOCABULARY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("model")
    models.write_folder(path, CONFIG, models.init(CONFIG, jax.random.key(7)), tokenizer=tokenizer)
    return path


def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def one_step(model: models.LanguageModel):
    """Parameters and moments after one step of Adam, row scores along it, and the step's program."""
    bundle, rule = as_model(model), optax.adam(0.01)

    def step(params, batch):
        gradient = jax.grad(lambda p: bundle.first_order(p, batch).weighted().value)(params)
        updates, state = rule.update(gradient, rule.init(params), params)
        scores = jax.jvp(lambda p: bundle.row_losses(p, batch).means, (params,), (updates,))[1]
        return optax.apply_updates(params, updates), state[0].mu, scores

    compiled = Compiled(step)
    return compiled(model.params, BATCH), compiled.lower(model.params, BATCH)


def moved(adapter):
    """An adapter far enough from its start that the model says something else."""
    keys = iter(jax.random.split(jax.random.key(3), 100))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), adapter)


def logits(model, params) -> jax.Array:
    return jax.jit(model.logits)(params, {name: x[:2] for name, x in BATCH.items()})


def test_adapters_alone_are_trained_and_the_base_is_handed_to_the_program(folder):
    model = models.load(folder, lora=LORA)
    (after, moments, _), program = one_step(model)
    assert model.trained == sum(x.size for x in jax.tree.leaves((after, moments))) / 2
    assert model.frozen == sum(x.size for x in jax.tree.leaves(models.init(CONFIG, jax.random.key(0))))
    assert all(np.any(factors["lora_b"] != 0) for factors in after["layers"]["attention"].values())
    text = program.as_text()
    assert f"tensor<{VOCABULARY}x16xf32>" in text
    assert 'dense<"0x' not in text  # how arrays would stand in it


def test_shared_out_parameters_train_like_copies(folder):
    (whole, _, expected), _ = one_step(models.load(folder))
    split = models.load(folder, mesh=mesh(), shard_rules={"width": "data"})
    (after, moments, scores), _ = one_step(split)
    chex.assert_trees_all_close(after, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)
    for tree in (split.params, after, moments):
        kernel = tree["layers"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (2, 2, 24)


def test_a_frozen_base_stands_on_every_device_of_the_mesh(folder):
    model = models.load(folder, lora=LORA, mesh=mesh())
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(model.base))
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(model.base)} == {8}


def test_a_frozen_base_is_held_in_the_type_of_the_products_and_adapters_are_not(folder):
    model = models.load(folder, lora=LORA, dtype="bfloat16", remat="full", attention="blockwise")
    assert {x.dtype for x in jax.tree.leaves(model.base)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}
    expected = models.load(folder, lora=LORA)
    np.testing.assert_allclose(
        jax.jit(model.token_scores)(model.params, BATCH).loss,
        jax.jit(expected.token_scores)(expected.params, BATCH).loss,
        rtol=0.05,
        atol=0.05,
    )
    assert model.described.startswith(
        f"an adapter of rank 2 on query, key, value, output, gate, up, down: {model.trained:,} parameters"
    )


def test_all_parameters_stay_float32_under_bfloat16_products(folder):
    model = models.load(folder, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}
    assert (model.base, model.frozen, model.described) == (None, 0, "")
    program = jax.jit(lambda p: jax.grad(lambda p: model.token_scores(p, BATCH).loss.sum())(p))
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(program, model.params))} == {
        jnp.dtype(jnp.float32)
    }
    assert "bf16" in program.lower(model.params).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folders_hold_the_adapter_or_the_merged_model(dtype, folder, tmp_path):
    model = models.load(folder, lora=LORA)
    trained = moved(model.params)
    expected = logits(model, trained)
    assert np.abs(expected - logits(model, model.params)).max() > 0.1

    narrow = models.load(folder, lora=LORA, dtype=dtype)
    narrow.write(tmp_path / "adapter", trained)
    again = models.load(folder, lora=tmp_path / "adapter")
    chex.assert_trees_all_equal(again.params, trained)
    np.testing.assert_allclose(logits(again, again.params), expected, atol=1e-6)
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()

    # Whatever was computed in, the adapter is merged into the numbers that the model was stored with.
    dataclasses.replace(narrow, merge=True).write(tmp_path / "merged", trained)
    merged = models.load(tmp_path / "merged")
    np.testing.assert_allclose(logits(merged, merged.params), expected, atol=1e-4)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_an_adapter_of_several_ranks_goes_on_only_where_it_is_merged(folder, tmp_path):
    wide = models.LoraConfig(3, 4.0, ("query",))
    models.write_adapter(tmp_path, CONFIG, wide, models.lora.init(CONFIG, wide, jax.random.key(0)))
    described = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(
        described.replace('"r": 3', '"r": 2').replace('"rank_pattern": {}', '"rank_pattern": {"q_proj": 3}')
    )
    with pytest.raises(models.ModelError, match="several ranks cannot be written again, only merged"):
        models.find(folder, lora=tmp_path)
    merging = models.load(folder, lora=tmp_path, merge=True)
    assert merging.params["layers"]["attention"]["query"]["lora_a"].shape == (2, 16, 3)


@pytest.mark.parametrize(
    ("asked", "length", "first_order", "forward"),
    [
        ("auto", 512, "fused", "exact"),
        ("auto", 1024, "fused", "blockwise"),
        ("fused", 1024, "fused", "blockwise"),
        ("exact", 1024, "", "exact"),
        ("blockwise", 64, "", "blockwise"),
    ],
)
def test_attention_paths(asked, length, first_order, forward, monkeypatch):
    paths, nothing = [], np.zeros((1, length))

    def scores(*_, attention, remat):
        paths.append(attention)
        return models.TokenScores(jnp.asarray(nothing), jnp.asarray(nothing, bool))

    monkeypatch.setattr("models.language_model.token_scores", scores)
    batch = {"tokens": nothing.astype(np.int32)}
    if asked == "auto":
        assert LanguageModel(CONFIG, {}).first_order_scores is None
    monkeypatch.setitem(KERNELS, jax.default_backend(), exact)
    model = LanguageModel(CONFIG, {}, attention=asked)
    model.token_scores({}, batch)
    if model.first_order_scores is not None:
        model.first_order_scores({}, batch)
    assert paths == [forward, first_order][: 1 + (first_order != "")]


def test_steps_with_a_kernel_take_another_path_for_row_scores(folder, monkeypatch):
    (plain, _, expected), _ = one_step(models.load(folder, lora=LORA))
    monkeypatch.setitem(KERNELS, jax.default_backend(), exact)
    (after, _, scores), _ = one_step(models.load(folder, lora=LORA))
    chex.assert_trees_all_close(after, plain, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_a_model_is_found_before_its_weights_are_read(folder, tmp_path, monkeypatch):
    found = models.find(folder)
    assert found == (dataclasses.replace(CONFIG, init_std=found.config.init_std), folder, str(folder))
    chex.assert_trees_all_equal(models.load(found).params, models.load(folder).params)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(models.ModelError, match="truncated or no safetensors file"):
        models.find(tmp_path)


def test_the_tokenizer_is_the_given_one_or_that_of_the_folder_or_none(folder, tokenizer, tmp_path):
    assert models.load(CONFIG).tokenizer is None
    assert models.load(CONFIG, tokenizer=tokenizer).tokenizer is tokenizer
    model = models.load(folder)
    assert model.tokenizer is model.tokenizer
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert models.load(CONFIG, tokenizer=folder).tokenizer.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(models.ModelError, match="there is no tokenizer"):
        models.load(CONFIG, tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(models.ModelError, match="the tokenizer cannot be read"):
        models.load(CONFIG, tokenizer=tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora": models.LoraConfig(2, targets=("w_proj",))}, "no linear map of a layer is called 'w_proj'"),
        ({"lora": "nowhere"}, "nowhere: no adapter_config.json"),
        ({"attention": "fused"}, "attention fused: this device has no kernel for heads of 8 in"),
        ({"attention": "quick"}, "unknown attention 'quick': choose one of auto, exact"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"remat": "some"}, "unknown remat 'some'"),
        ({"merge": True}, "merge is for adapters"),
        ({"shard_rules": {"width": "data"}}, "give mesh, too"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, said, folder):
    with pytest.raises(models.ModelError, match=said):
        models.load(folder, **options)


def test_an_adapter_of_a_random_model_must_be_merged():
    with pytest.raises(models.ModelError, match="beside random weights"):
        models.load(CONFIG, lora=LORA)
    assert set(models.load(CONFIG, lora=LORA, merge=True).params) == {"layers"}


def test_targets_go_by_the_checkpoints_names_and_by_ours(folder):
    names = (("q_proj", "self_attn.v_proj"), ("query", "value"))
    found = [models.load(folder, lora=models.LoraConfig(2, targets=targets)) for targets in names]
    assert [model.adapter.targets for model in found] == [("query", "value")] * 2
    chex.assert_trees_all_equal(*(model.params for model in found))


def test_random_weights_come_from_the_seed():
    kernels = [models.load(CONFIG, seed=seed).params["layers"]["mlp"]["up"]["kernel"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.all(kernels[0] != kernels[2])


def test_a_width_that_the_devices_cannot_share_is_refused():
    narrow = dataclasses.replace(CONFIG, width=12, head_dim=6)
    with pytest.raises(models.ModelError, match="width 12 cannot be divided over 8 devices"):
        models.load(narrow, mesh=mesh(), shard_rules={"width": "data"})
