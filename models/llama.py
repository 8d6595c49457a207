"""Llama checkpoints, and the tables that its descendants share."""

from models.family import Family, Setting, TensorName, linear_names

SETTINGS = (
    Setting("vocab_size", "vocab_size"),
    Setting("width", "hidden_size"),
    Setting("layers", "num_hidden_layers"),
    Setting("heads", "num_attention_heads"),
    Setting("mlp_width", "intermediate_size"),
    Setting("rope_theta", "rope_theta", 10000.0),
    Setting("rope_scaling", "rope_scaling", None),
    Setting("norm_epsilon", "rms_norm_eps", 1e-6),
    Setting("tied_embeddings", "tie_word_embeddings", False),
    Setting("init_std", "initializer_range", 0.02),
)
"""What all of them state under the same keys, with the same defaults."""

TENSORS = (
    TensorName("embedding/table", "model.embed_tokens.weight"),
    TensorName("layers/attention_norm/scale", "model.layers.{layer}.input_layernorm.weight"),
    *linear_names("layers/attention/query", "model.layers.{layer}.self_attn.q_proj"),
    *linear_names("layers/attention/key", "model.layers.{layer}.self_attn.k_proj"),
    *linear_names("layers/attention/value", "model.layers.{layer}.self_attn.v_proj"),
    *linear_names("layers/attention/output", "model.layers.{layer}.self_attn.o_proj"),
    TensorName("layers/attention/query_norm/scale", "model.layers.{layer}.self_attn.q_norm.weight"),
    TensorName("layers/attention/key_norm/scale", "model.layers.{layer}.self_attn.k_norm.weight"),
    TensorName("layers/mlp_norm/scale", "model.layers.{layer}.post_attention_layernorm.weight"),
    *linear_names("layers/mlp/gate", "model.layers.{layer}.mlp.gate_proj"),
    *linear_names("layers/mlp/up", "model.layers.{layer}.mlp.up_proj"),
    *linear_names("layers/mlp/down", "model.layers.{layer}.mlp.down_proj"),
    TensorName("final_norm/scale", "model.norm.weight"),
    TensorName("unembedding/kernel", "lm_head.weight", transposed=True),
)
"""Names of every tensor that one of them has; only those that an architecture declares are looked for."""

# Old checkpoints carry the rotary frequencies, and some a second copy of tied embeddings.
IGNORED = ("model.layers.*.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq", "lm_head.weight")

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    settings=(
        *SETTINGS,
        Setting("kv_heads", "num_key_value_heads", None),
        Setting("head_dim", "head_dim", None),
        Setting("max_positions", "max_position_embeddings", 2048),
        Setting("attention_bias", "attention_bias", False),
        Setting("output_bias", "attention_bias", False),
        Setting("mlp_bias", "mlp_bias", False),
    ),
    fixed={"hidden_act": "silu"},
    constants={},
    tensors=TENSORS,
    ignored=IGNORED,
)
