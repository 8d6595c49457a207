"""Qwen 2 (2.5) and Qwen 3 checkpoints: Llama with biases on queries, keys and values, or with their norms."""

from models.family import Family, Setting
from models.llama import IGNORED, SETTINGS, TENSORS

# Its sliding window would hold for the upper layers alone, and only where use_sliding_window says so.
_IDLE = ("sliding_window",)

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    settings=(
        *SETTINGS,
        Setting("kv_heads", "num_key_value_heads", 32),
        Setting("head_dim", "head_dim", None),
        Setting("max_positions", "max_position_embeddings", 32768),
    ),
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    constants={"attention_bias": True},
    tensors=TENSORS,
    ignored=IGNORED,
    idle=(*_IDLE, "attention_bias"),
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    settings=(
        *SETTINGS,
        Setting("kv_heads", "num_key_value_heads", 32),
        Setting("head_dim", "head_dim", 128),
        Setting("max_positions", "max_position_embeddings", 32768),
        Setting("attention_bias", "attention_bias", False),
        Setting("output_bias", "attention_bias", False),
    ),
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    constants={"qk_norm": True},
    tensors=TENSORS,
    ignored=IGNORED,
    idle=_IDLE,
)
