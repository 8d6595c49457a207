import dataclasses
import json
from functools import cache, partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models import LoraConfig, ModelError, lora
from models.adapter_folder import CONFIG, WEIGHTS
from models.lora import TARGETS
from tests.models.folders import FAMILIES, params_of

LLAMA, GPT2 = FAMILIES["llama"], FAMILIES["gpt2"]
ALL = LoraConfig(rank=2, alpha=6.0, targets=tuple(TARGETS))
TOKENS = jax.random.randint(jax.random.key(3), (2, 6), 0, LLAMA.vocab_size)
BATCH = {"tokens": TOKENS, "segments": jnp.ones_like(TOKENS)}


@cache
def trained(config: models.DecoderConfig, settings: LoraConfig) -> dict:
    """An adapter whose every entry is random."""
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(
        lambda x: 0.3 * jax.random.normal(next(keys), x.shape), lora.init(config, settings, jax.random.key(4))
    )


@partial(jax.jit, static_argnums=0)
def logits(config: models.DecoderConfig, params: dict) -> jax.Array:
    return models.logits(params, TOKENS, BATCH["segments"], config)


def test_a_fresh_adapter_changes_nothing() -> None:
    params = params_of(LLAMA)
    adapter = lora.init(LLAMA, ALL, jax.random.key(1))
    np.testing.assert_array_equal(logits(LLAMA, lora.attach(params, adapter, ALL)), logits(LLAMA, params))
    query = adapter["layers"]["attention"]["query"]
    assert query["lora_a"].shape == (2, 8, 2)
    assert query["lora_b"].shape == (2, 2, 16)
    assert 0.8 * 8**-0.5 < np.abs(query["lora_a"]).max() <= 8**-0.5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_attached_equals_merged_and_neither_touches_the_base(name: str) -> None:
    config = FAMILIES[name]
    settings = dataclasses.replace(
        ALL,
        targets=tuple(t for t in TARGETS if t != "gate" or name != "gpt2"),
        rank_stabilised=name == "gpt2",
    )
    params, adapter = params_of(config), trained(config, settings)
    merged = lora.merge(params, adapter, settings)
    chex.assert_trees_all_equal_shapes(merged, params)
    chex.assert_trees_all_equal(params, params_of(config))
    ours = logits(config, lora.attach(params, adapter, settings))
    np.testing.assert_allclose(ours, logits(config, merged), atol=1e-5)
    assert np.abs(ours - logits(config, params)).max() > 0.1
    texts = [
        models.generate(view, np.asarray(TOKENS).tolist(), None, models.Sampling(4), config)
        for view in (merged, lora.attach(params, adapter, settings))
    ]
    np.testing.assert_array_equal(*([answer.tokens for answer in text] for text in texts))


def test_the_adapter_alone_is_trained() -> None:
    params = params_of(LLAMA)

    def loss(adapter: dict) -> jax.Array:
        view = lora.attach(params, adapter, ALL)
        return jnp.sum(models.token_scores(view, BATCH, LLAMA).loss)

    adapter = trained(LLAMA, ALL)
    gradient = jax.jit(jax.grad(loss))(adapter)
    chex.assert_trees_all_equal_shapes(gradient, adapter)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    # The gradient with respect to a factor is the kernel's, projected on the other factor.
    kernels = jax.jit(jax.grad(lambda p: jnp.sum(models.token_scores(p, BATCH, LLAMA).loss)))(
        lora.merge(params, adapter, ALL)
    )
    factors, kernel = adapter["layers"]["mlp"]["up"], kernels["layers"]["mlp"]["up"]["kernel"]
    expected = ALL.scale * jnp.einsum("lio,lro->lir", kernel, factors["lora_b"])
    np.testing.assert_allclose(gradient["layers"]["mlp"]["up"]["lora_a"], expected, rtol=1e-3, atol=1e-4)


def test_adapters_compute_in_the_type_of_the_model() -> None:
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(LLAMA))
    view = lora.attach(narrow, trained(LLAMA, ALL), ALL)
    computed = jax.eval_shape(lambda view: models.hidden(view, TOKENS, BATCH["segments"], LLAMA), view)
    assert computed.dtype == jnp.bfloat16
    merged = lora.merge(narrow, trained(LLAMA, ALL), ALL)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}


def test_axes_are_those_of_the_kernels() -> None:
    axes = models.logical_axes(lora.declare(LLAMA, ALL))["layers"]["attention"]["output"]
    assert axes == {"lora_a": ("layers", "heads", "rank"), "lora_b": ("layers", "rank", "width")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank and alpha must be positive, not 0 and 16.0"),
        ({"targets": ()}, "no targets: choose among query"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LoraConfig(**settings)


def test_targets_that_an_architecture_lacks_are_refused() -> None:
    with pytest.raises(ModelError, match="a plain MLP has no 'gate' to adapt"):
        lora.declare(GPT2, ALL)
    with pytest.raises(ModelError, match="unknown target 'q_proj': choose among query"):
        lora.declare(LLAMA, LoraConfig(targets=("q_proj",)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_folders_keep_an_adapter(dtype: type, tmp_path: Path) -> None:
    settings = LoraConfig(rank=3, alpha=5.0, targets=("query", "down"))
    adapter = jax.tree.map(lambda x: x.astype(dtype), trained(LLAMA, settings))
    models.write_adapter(tmp_path, LLAMA, settings, adapter, base="some/model")
    read_settings, read = models.read_adapter(tmp_path, LLAMA)
    assert read_settings == settings
    chex.assert_trees_all_equal(read, adapter)
    wide = models.read_adapter(tmp_path, LLAMA, jnp.float32)[1]
    chex.assert_trees_all_equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), adapter))
    raw = json.loads((tmp_path / CONFIG).read_text())
    assert raw["target_modules"] == ["down_proj", "q_proj"]
    assert raw["base_model_name_or_path"] == "some/model"


@pytest.mark.parametrize("stabilised", [False, True])
def test_maps_that_a_checkpoint_joins_share_one_adapter(stabilised: bool, tmp_path: Path) -> None:
    settings = LoraConfig(2, 6.0, ("query", "value", "output"), stabilised)
    params, adapter = params_of(GPT2), trained(GPT2, settings)
    models.write_adapter(tmp_path, GPT2, settings, adapter)
    tensors = load_file(tmp_path / WEIGHTS)
    assert tensors["base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"].shape == (4, 8)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == ["attn.c_proj", "c_attn"]
    read_settings, read = models.read_adapter(tmp_path, GPT2)
    expected, found = (
        logits(GPT2, lora.attach(params, *pair)) for pair in ((adapter, settings), (read, read_settings))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
BROKEN = {
    "no config": (
        lambda raw, tensors: raw.clear(),
        r"adapter_config.json: no settings of an adapter \(KeyError",
    ),
    "other method": (
        lambda raw, tensors: raw.update(peft_type="IA3"),
        r"adapter_config.json: peft_type 'IA3' is not supported: only 'LORA' is",
    ),
    "more than factors": (lambda raw, tensors: raw.update(use_dora=True), "use_dora True is not supported"),
    "weights of the model changed on loading": (
        lambda raw, tensors: raw.update(init_lora_weights="pissa_niter_8"),
        "init_lora_weights 'pissa_niter_8' is not supported: only True is",
    ),
    "acts from somewhere on": (
        lambda raw, tensors: raw.update(alora_invocation_tokens=[5, 6]),
        r"alora_invocation_tokens \[5, 6\] is not supported: merge this adapter with PEFT instead",
    ),
    "layers given twice": (
        lambda raw, tensors: raw.update(layer_replication=[[0, 1], [0, 2]]),
        "layer_replication .* is not supported",
    ),
    "a setting of a later version": (
        lambda raw, tensors: raw.update(use_something_new={"by": 2}),
        "use_something_new {'by': 2} is not supported",
    ),
    "modules that PEFT would pass over": (
        lambda raw, tensors: raw.update(target_modules=["v_proj"]),
        "the weights adapt model.layers.0.self_attn.q_proj, which target_modules",
    ),
    "no pattern": (
        lambda raw, tensors: raw.update(alpha_pattern={"q_proj": "8"}),
        "alpha_pattern must hold positive numbers by module",
    ),
    "no regular expression": (
        lambda raw, tensors: raw.update(rank_pattern={"q_proj(": 2}),
        "a pattern is no regular expression",
    ),
    "text for a rank": (lambda raw, tensors: raw.update(r="8"), "r and lora_alpha must be numbers, not '8'"),
    "wrong rank": (
        lambda raw, tensors: raw.update(r=4),
        rf"adapter_model.safetensors: tensor {A} has shape \(2, 8\), the config makes it \(4, 8\)",
    ),
    "missing tensor": (
        lambda raw, tensors: tensors.pop(A.replace("layers.0", "layers.1")),
        "missing tensor base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
    ),
    "extra tensor": (
        lambda raw, tensors: tensors.update(other=np.ones(1, np.float32)),
        "adapter_model.safetensors: unknown extra tensor other",
    ),
    "nothing known": (
        lambda raw, tensors: (tensors.clear(), tensors.update(other=np.ones(1, np.float32))),
        "adapter_model.safetensors: adapts no linear map of a layer",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters_are_named_in_one_line(name: str, tmp_path: Path) -> None:
    breaking, message = BROKEN[name]
    settings = LoraConfig(2, 6.0)
    models.write_adapter(tmp_path, LLAMA, settings, trained(LLAMA, settings))
    raw, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    breaking(raw, tensors)
    (tmp_path / CONFIG).write_text(json.dumps(raw))
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=message) as caught:
        models.read_adapter(tmp_path, LLAMA)
    assert "\n" not in str(caught.value)


def test_absent_adapters_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no adapter_config.json: not a PEFT adapter folder"):
        models.read_adapter(tmp_path, LLAMA)
    models.write_adapter(tmp_path, LLAMA, LoraConfig(2), trained(LLAMA, LoraConfig(2)))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors"):
        models.read_adapter(tmp_path, LLAMA)


def test_adapters_of_other_settings_are_not_written(tmp_path: Path) -> None:
    adapter = trained(LLAMA, LoraConfig(2))
    with pytest.raises(ModelError, match=r"attention/query/lora_a has shape .* the settings make it"):
        models.write_adapter(tmp_path, LLAMA, LoraConfig(3), adapter)
    with pytest.raises(ModelError, match="the adapter has no mlp/up, which its settings name"):
        models.write_adapter(tmp_path, LLAMA, LoraConfig(2, targets=("query", "up")), adapter)
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize(
    ("family", "names", "found"),
    [
        ("llama", ("v_proj", "q_proj"), ("query", "value")),
        ("llama", ("self_attn.o_proj", "up"), ("output", "up")),
        ("llama", ("all",), tuple(TARGETS)),
        ("gpt2", ("c_attn",), ("query", "key", "value")),
        ("gpt2", ("attn.c_proj", "mlp.c_proj"), ("output", "down")),
        ("gpt2", ("c_proj",), ("output", "down")),
    ],
)
def test_targets_go_by_the_names_of_checkpoints_and_by_ours(
    family: str, names: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert models.find_targets(FAMILIES[family], names) == found


@pytest.mark.parametrize("names", [("q_proj", "w_proj"), ("",), ()])
def test_names_that_match_no_linear_map_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"is called '(w_proj)?': choose among q_proj, k_proj, .*, all"):
        models.find_targets(LLAMA, names)
