"""Mistral checkpoints: Llama with a sliding window."""

from models.family import Family, Setting
from models.llama import IGNORED, SETTINGS, TENSORS

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    settings=(
        *SETTINGS,
        Setting("kv_heads", "num_key_value_heads", 8),
        Setting("head_dim", "head_dim", None),
        Setting("max_positions", "max_position_embeddings", 131072),
        Setting("window", "sliding_window", 4096),
    ),
    fixed={"hidden_act": "silu"},
    constants={},
    tensors=TENSORS,
    ignored=IGNORED,
)
