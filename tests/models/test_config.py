import dataclasses

import pytest

from models import DecoderConfig, ModelError, RopeScaling

CONFIG = DecoderConfig(vocab_size=11, width=12, layers=2, heads=4, kv_heads=2, mlp_width=10, head_dim=4)


def test_head_dim_defaults_to_an_equal_share_of_the_width() -> None:
    assert dataclasses.replace(CONFIG, width=24, head_dim=0).head_dim == 6


def test_configs_are_hashable_and_compare_by_value() -> None:
    assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))
    assert dataclasses.replace(CONFIG, tied_embeddings=False) != CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be positive, not 0"),
        ({"layers": -1}, "layers must be positive"),
        ({"heads": 0, "head_dim": 0}, "heads must be positive"),
        ({"kv_heads": 3}, "heads 4 must be a multiple of kv_heads 3"),
        ({"width": 10, "head_dim": 0}, "width 10 is not a multiple of heads 4"),
        ({"head_dim": 3}, "head_dim must be even"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon must be positive"),
        ({"max_positions": 0}, "max_positions must be positive"),
        ({"window": 0}, "window must be positive, not 0: None stands for no window"),
        ({"positions": "absolute"}, "unknown positions 'absolute': choose one of rotary, learned"),
        ({"norm": "batch"}, "unknown norm 'batch': choose one of rms, layer"),
        ({"mlp": "wide"}, "unknown mlp 'wide': choose one of gated, plain"),
    ],
)
def test_impossible_sizes_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0, 1.0, 4.0, 8), "rope scaling: factor must be positive, not 0.0"),
        ((2.0, 4.0, 4.0, 8), "low_frequency_factor 4.0 must be below high_frequency_factor 4.0"),
    ],
)
def test_impossible_scalings_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        RopeScaling(*values)


def test_learned_positions_ask_nothing_of_the_heads() -> None:
    assert dataclasses.replace(CONFIG, head_dim=3, positions="learned").head_dim == 3
