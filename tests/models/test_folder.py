import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models import DecoderConfig, ModelError, RopeScaling
from models.checkpoint import INDEX, WEIGHTS
from models.folder import CONFIG

TIED = DecoderConfig(vocab_size=13, width=8, layers=2, heads=4, kv_heads=2, mlp_width=6, norm_epsilon=1e-6)
UNTIED = dataclasses.replace(
    TIED,
    tied_embeddings=False,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    kv_heads=1,
    head_dim=4,
    rope_theta=5e5,
)


FAMILIES = {
    "llama": UNTIED,
    "mistral": dataclasses.replace(TIED, window=5, max_positions=64),
    "qwen2": dataclasses.replace(TIED, attention_bias=True, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)),
    "qwen3": dataclasses.replace(TIED, qk_norm=True, head_dim=6),
    "gpt2": dataclasses.replace(
        TIED,
        kv_heads=4,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions="learned",
        norm="layer",
        mlp="plain",
    ),
}


def params_of(config: DecoderConfig) -> dict:
    return models.init(config, jax.random.key(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write_folder(tmp_path / "model", UNTIED, params_of(UNTIED))
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / CONFIG).read_text()) | changes
    kept = {key: value for key, value in raw.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(kept))


def edit_weights(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_returns_the_same_model(family: str, tmp_path: Path) -> None:
    config = FAMILIES[family]
    params = params_of(config)
    models.write_folder(tmp_path, config, params)
    read_config, read_params = models.read_folder(tmp_path)
    assert read_config == config == models.read_config(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["model_type"] == family
    chex.assert_trees_all_equal(read_params, params)


def test_checkpoint_tensors_stand_as_torch_has_them(folder: Path) -> None:
    tensors, params = load_file(folder / WEIGHTS), params_of(UNTIED)
    gate = params["layers"]["mlp"]["gate"]["kernel"]
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.gate_proj.weight"], gate[1].T)
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["unembedding"]["kernel"].T)
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (4, 8)


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    models.write_folder(tmp_path, TIED, params_of(TIED))
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)


def test_shards_are_read_as_one(folder: Path) -> None:
    shard(folder)
    chex.assert_trees_all_equal(models.read_folder(folder)[1], params_of(UNTIED))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_types_are_kept_or_converted(dtype: type, tmp_path: Path) -> None:
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(TIED))
    models.write_folder(tmp_path, TIED, narrow)
    assert json.loads((tmp_path / CONFIG).read_text())["dtype"] == "bfloat16"
    chex.assert_trees_all_equal(models.read_folder(tmp_path)[1], narrow)
    expected = jax.tree.map(lambda x: x.astype(dtype), narrow)
    chex.assert_trees_all_equal(models.read_folder(tmp_path, dtype)[1], expected)


def test_mixed_types_are_read_in_the_widest(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"model.norm.weight": np.ones(8, jnp.bfloat16)}))
    assert models.read_folder(folder)[1]["final_norm"]["scale"].dtype == jnp.float32


def test_tensors_without_meaning_are_passed_over(tmp_path: Path) -> None:
    models.write_folder(tmp_path, TIED, params_of(TIED))
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    extras = {frequencies: np.ones(1, np.float32), "lm_head.weight": np.ones((13, 8), np.float32)}
    edit_weights(tmp_path, lambda tensors: tensors.update(extras))
    chex.assert_trees_all_equal(models.read_folder(tmp_path)[1], params_of(TIED))


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 123.0, "rope_scaling": None},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 123.0, "rope_type": "default"}},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 123, "type": "default"}},
    ],
)
def test_both_spellings_of_the_rotary_base_are_read_and_kept(folder: Path, spelling: dict) -> None:
    edit_config(folder, **spelling)
    config, params = models.read_folder(folder)
    assert config.rope_theta == 123.0
    copy = folder.parent / "copy"
    models.write_folder(copy, dataclasses.replace(config, rope_theta=7.0), params, source=folder)
    assert models.read_config(copy).rope_theta == 7.0
    assert ("rope_theta" in json.loads((copy / CONFIG).read_text())) is (spelling["rope_theta"] is not ...)


def test_llama_3_scaling_is_read_and_kept_in_both_spellings(folder: Path) -> None:
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = {"rope_type": "llama3"} | dict(zip(keys, (8, 1.0, 4.0, 512), strict=True))
    expected = RopeScaling(8, 1.0, 4.0, 512)
    for spelling in (
        {"rope_theta": 9.0, "rope_scaling": scaling},
        {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": {"rope_theta": 9.0} | scaling},
    ):
        edit_config(folder, **spelling)
        config, params = models.read_folder(folder)
        assert (config.rope_theta, config.rope_scaling) == (9.0, expected)
        copy = folder.parent / "copy"
        for change in ({"rope_theta": 7.0}, {"rope_scaling": None}):
            changed = dataclasses.replace(config, **change)
            models.write_folder(copy, changed, params, source=folder)
            assert models.read_config(copy) == changed
            assert set(json.loads((copy / CONFIG).read_text())) == set(
                json.loads((folder / CONFIG).read_text())
            )


def test_null_is_a_window_of_its_own_and_an_absent_number(tmp_path: Path) -> None:
    models.write_folder(tmp_path, FAMILIES["mistral"], params_of(TIED))
    edit_config(tmp_path, sliding_window=None, rms_norm_eps=None)
    assert models.read_config(tmp_path) == dataclasses.replace(FAMILIES["mistral"], window=None)
    edit_config(tmp_path, sliding_window=...)
    assert models.read_config(tmp_path).window == 4096


def test_architectures_that_no_checkpoint_holds_are_not_written(folder: Path) -> None:
    config, params = models.read_folder(folder)
    mixed = dataclasses.replace(config, window=4)
    with pytest.raises(
        ModelError, match=r"no family of checkpoints holds this architecture .*llama: window 4"
    ):
        models.write_folder(folder, mixed, params)
    with pytest.raises(ModelError, match="window 4 cannot be written: a llama model like this has None"):
        models.write_folder(folder, mixed, params, source=folder)


def test_absent_settings_take_the_defaults_of_the_family(folder: Path) -> None:
    optional = (
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "rope_theta",
        "mlp_bias",
    )
    edit_config(folder, **dict.fromkeys(optional, ...))
    expected = {"kv_heads": 4, "head_dim": 2, "norm_epsilon": 1e-6, "rope_theta": 1e4, "mlp_bias": False}
    assert models.read_config(folder) == dataclasses.replace(UNTIED, **expected)


def test_config_of_the_source_changes_only_where_the_model_does(folder: Path) -> None:
    edit_config(folder, torch_dtype="float32", dtype=..., eos_token_id=[3, 4], made_by="somebody")
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("a tokenizer")
    before = json.loads((folder / CONFIG).read_text())
    config, params = models.read_folder(folder)
    wider = dataclasses.replace(config, max_positions=99)
    copy = folder.parent / "copy"
    models.write_folder(copy, wider, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), source=folder)
    changes = {"max_position_embeddings": 99, "torch_dtype": "bfloat16"}
    assert json.loads((copy / CONFIG).read_text()) == before | changes
    assert (copy / "generation_config.json").read_text() == "{}"
    assert (copy / "tokenizer.json").read_text() == "a tokenizer"


def test_a_model_is_written_over_its_own_source(folder: Path) -> None:
    config, params = models.read_folder(folder)
    (folder / "tokenizer.json").write_text("a tokenizer")
    models.write_folder(folder, config, jax.tree.map(lambda x: 2 * x, params), source=folder)
    chex.assert_trees_all_equal(models.read_folder(folder)[1], jax.tree.map(lambda x: 2 * x, params))
    assert (folder / "tokenizer.json").read_text() == "a tokenizer"


@pytest.mark.parametrize("given", ["object", "folder"])
def test_tokenizers_are_written_beside_the_model(given: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 5, "</s>": 6, "a": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = tokenizer if given == "object" else tmp_path / "tokenizer"
    models.write_folder(tmp_path / "model", TIED, params_of(TIED), tokenizer=source)
    raw = json.loads((tmp_path / "model" / CONFIG).read_text())
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (5, 6, None)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id == 6


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


def reshape(tensors: dict) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((8, 6), np.float32)


def quantise(tensors: dict) -> None:
    tensors["model.norm.weight"] = np.zeros(8, np.int8)


def sharded_without_one(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def leaving_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}}))


UP = "model.layers.1.mlp.up_proj.weight"
BROKEN = {
    "no config": (without(CONFIG), r"model: no config.json: not a Hugging Face model folder"),
    "config no JSON": (lambda f: (f / CONFIG).write_text("{'a'"), r"config.json: no valid JSON \(.*line 1"),
    "config no object": (lambda f: (f / CONFIG).write_text("[]"), r"config.json: must hold a JSON object"),
    "unknown architecture": (
        lambda f: edit_config(f, model_type="gpt_neox"),
        r"config.json: unknown architecture 'gpt_neox': known are .*llama",
    ),
    "no architecture": (lambda f: edit_config(f, model_type=...), r"unknown architecture None"),
    "missing setting": (lambda f: edit_config(f, hidden_size=...), r"config.json: no hidden_size"),
    "text for a number": (
        lambda f: edit_config(f, hidden_size="8"),
        r"config.json: hidden_size must be a whole number, not '8'",
    ),
    "number for a switch": (
        lambda f: edit_config(f, attention_bias=1),
        r"attention_bias must be true or false, not 1",
    ),
    "text for a window": (
        lambda f: edit_config(f, model_type="mistral", mlp_bias=..., sliding_window="9"),
        r"sliding_window must be a whole number or null, not '9'",
    ),
    "layer types": (
        lambda f: edit_config(f, layer_types=["full_attention", "sliding_attention"]),
        r"config.json: layer_types .* is not supported",
    ),
    "rope scaling incomplete": (
        lambda f: edit_config(f, rope_scaling={"rope_type": "llama3", "factor": 2.0}),
        r"config.json: rope type 'llama3' needs a number as low_freq_factor, not None",
    ),
    "impossible sizes": (
        lambda f: edit_config(f, num_key_value_heads=3),
        r"config.json: heads 4 must be a mul",
    ),
    "activation": (lambda f: edit_config(f, hidden_act="gelu"), r"hidden_act 'gelu' is not supported"),
    "rope scaling": (
        lambda f: edit_config(f, rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        r"config.json: rope type 'yarn' is not supported",
    ),
    "rope no object": (lambda f: edit_config(f, rope_parameters=[1]), r"rope_parameters must be an object"),
    "no weights": (without(WEIGHTS), r"model: no weights: neither model.safetensors nor"),
    "pickled weights": (pickled, r"model: no weights: .*other formats are not read"),
    "truncated weights": (cut, r"model.safetensors: truncated or no safetensors file"),
    "weights no safetensors": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04K\x01."),
        r"model.safetensors: truncated or no safetensors file",
    ),
    "missing tensor": (lambda f: edit_weights(f, lambda t: t.pop(UP)), rf"model: missing tensor {UP}"),
    "wrong shape": (
        lambda f: edit_weights(f, reshape),
        rf"model.safetensors: tensor {UP} has shape \(8, 6\), the config makes it \(6, 8\)",
    ),
    "extra tensor": (
        lambda f: edit_weights(f, lambda t: t.update({"score.weight": np.ones(1, np.float32)})),
        r"model.safetensors: unknown extra tensor score.weight",
    ),
    "extra layer": (
        lambda f: edit_config(f, num_hidden_layers=1),
        r"model.safetensors: unknown extra tensor model.layers.1",
    ),
    "whole numbers": (
        lambda f: edit_weights(f, quantise),
        r"tensor model.norm.weight is stored as I8: only floats are read",
    ),
    "missing shard": (sharded_without_one, r"model-00002-of-00002.safetensors: missing shard"),
    "index no JSON": (
        lambda f: (shard(f), (f / INDEX).write_text("{")),
        r"model.safetensors.index.json: no index of shards",
    ),
    "index empty": (
        lambda f: (shard(f), (f / INDEX).write_text('{"weight_map": {}}')),
        r"index.json: names no shard",
    ),
    "index outside": (leaving_index, r"index.json: shard '../model.safetensors' is no plain file name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_named_in_one_line(name: str, folder: Path) -> None:
    breaking, message = BROKEN[name]
    breaking(folder)
    with pytest.raises(ModelError, match=message) as caught:
        models.read_folder(folder)
    assert "\n" not in str(caught.value)


def test_absent_folders_are_named(folder: Path) -> None:
    missing = folder.parent / "nowhere"
    with pytest.raises(ModelError, match="nowhere: no such model folder"):
        models.read_folder(missing)
    with pytest.raises(ModelError, match="nowhere: no such tokenizer folder"):
        models.write_folder(folder, UNTIED, params_of(UNTIED), tokenizer=missing)


def test_parameters_of_another_architecture_are_not_written(tmp_path: Path) -> None:
    params = params_of(TIED)
    with pytest.raises(ModelError, match="parameter layers/attention/query/bias is missing"):
        models.write_folder(
            tmp_path, dataclasses.replace(TIED, attention_bias=True, output_bias=True), params
        )
    with pytest.raises(
        ModelError, match=r"has shape \(2, 8, 6\): the architecture has it with shape \(2, 8, 7\)"
    ):
        models.write_folder(tmp_path, dataclasses.replace(TIED, mlp_width=7), params)
    with pytest.raises(ModelError, match="parameter adapter is not part of the architecture"):
        models.write_folder(tmp_path, TIED, {**params, "adapter": jnp.ones(1)})
    assert not (tmp_path / WEIGHTS).exists()
