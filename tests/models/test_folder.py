import dataclasses
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import models
from models import ModelError, RopeScaling
from models.folder import CONFIG
from models.stored import INDEX, WEIGHTS
from tests.models.folders import FAMILIES, TIED, UNTIED, edit_config, edit_weights, params_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write_folder(tmp_path / "model", UNTIED, params_of(UNTIED))
    return tmp_path / "model"


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


def test_shards_are_read_as_one_and_leave_nothing_of_the_model_before(folder: Path) -> None:
    config, params = models.read_folder(folder)
    whole = load_file(folder / WEIGHTS)
    models.write_folder(folder, config, params, shard_bytes=900)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 4
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 900
        assert all(index["weight_map"][name] == file.name for name in tensors)
    chex.assert_trees_all_equal(models.read_folder(folder)[1], params)
    # Shards of another number, then a single file: each replaces what was there.
    for limit in (2000, 10**6):
        doubled = jax.tree.map(lambda x: 2 * x, params)
        models.write_folder(folder, config, doubled, shard_bytes=limit)
        chex.assert_trees_all_equal(models.read_folder(folder)[1], doubled)
    assert [file.name for file in folder.glob("model*")] == [WEIGHTS]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_parameters_are_read_to_where_they_belong(family: str, tmp_path: Path) -> None:
    config = FAMILIES[family]
    params = params_of(config)
    models.write_folder(tmp_path, config, params, shard_bytes=2000)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rules = {"width": "model", "heads": "data", "mlp": "data"}
    places = models.shardings(config, mesh, rules)
    _, read = models.read_folder(tmp_path, jnp.bfloat16, places)
    chex.assert_trees_all_equal(read, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert jax.tree.map(lambda x: x.sharding, read) == places
    query = read["layers"]["attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.shape == (2, 2, query.shape[2] // 2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    _, copies = models.read_folder(tmp_path, shardings=everywhere)
    assert copies["embedding"]["table"].sharding == everywhere


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"width": "model"}, "the mesh has no axis 'model' for width: it has data"),
        ({"mlp": "data"}, "mlp 6 cannot be divided over 4 devices: leave it whole"),
        ({"length": "data"}, "no parameter has an axis 'length': there are .*vocab, width"),
    ],
)
def test_impossible_rules_are_refused(rules: dict, message: str) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ModelError, match=message):
        models.shardings(TIED, mesh, rules)


def test_names_on_the_hub_stand_for_their_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert models.read_config("owner/name") == UNTIED
    chex.assert_trees_all_equal(models.read_folder("owner/name")[1], params_of(UNTIED))
    assert [name for name, _ in asked] == ["owner/name"] * 2
    assert asked[0][1] == [CONFIG]
    assert not any(pattern.endswith((".bin", ".py", ".pt")) or pattern == "*" for pattern in asked[1][1])


def test_without_a_network_the_hub_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="owner/no-such-name: no such folder, and the hub gave no model"
    ) as caught:
        models.read_folder("owner/no-such-name")
    assert "\n" not in str(caught.value)
    assert "(hf download owner/no-such-name --local-dir FOLDER) and name that folder" in str(caught.value)


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
    copy = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    extras = {frequencies: np.ones(1, np.float32), "lm_head.weight": copy}
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
    edit_config(folder, torch_dtype="float32", dtype=..., eos_token_id=[3, 4], _made_by="somebody")
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
