"""GPT-2 checkpoints: learned positions, layer norms, a plain MLP, and kernels as [inputs, outputs]."""

from models.family import Family, Setting, TensorName

_LAYER = "transformer.h.{layer}"


def _norm(path: str, name: str) -> tuple[TensorName, ...]:
    return TensorName(f"{path}/scale", f"{name}.weight"), TensorName(f"{path}/bias", f"{name}.bias")


def _linear(path: str, name: str, part: int = 0, parts: int = 1) -> tuple[TensorName, ...]:
    return (
        TensorName(f"{path}/kernel", f"{name}.weight", part=part, parts=parts),
        TensorName(f"{path}/bias", f"{name}.bias", part=part, parts=parts),
    )


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("width", "n_embd"),
        Setting("layers", "n_layer"),
        Setting("heads", "n_head"),
        Setting("mlp_width", "n_inner", None),
        Setting("max_positions", "n_positions", 1024),
        Setting("norm_epsilon", "layer_norm_epsilon", 1e-5),
        Setting("tied_embeddings", "tie_word_embeddings", True),
        Setting("init_std", "initializer_range", 0.02),
    ),
    fixed={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    constants={
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "positions": "learned",
        "norm": "layer",
        "mlp": "plain",
    },
    tensors=(
        TensorName("embedding/table", "transformer.wte.weight"),
        TensorName("positions/table", "transformer.wpe.weight"),
        *_norm("layers/attention_norm", f"{_LAYER}.ln_1"),
        *_linear("layers/attention/query", f"{_LAYER}.attn.c_attn", 0, 3),
        *_linear("layers/attention/key", f"{_LAYER}.attn.c_attn", 1, 3),
        *_linear("layers/attention/value", f"{_LAYER}.attn.c_attn", 2, 3),
        *_linear("layers/attention/output", f"{_LAYER}.attn.c_proj"),
        *_norm("layers/mlp_norm", f"{_LAYER}.ln_2"),
        *_linear("layers/mlp/up", f"{_LAYER}.mlp.c_fc"),
        *_linear("layers/mlp/down", f"{_LAYER}.mlp.c_proj"),
        *_norm("final_norm", "transformer.ln_f"),
        TensorName("unembedding/kernel", "lm_head.weight", transposed=True),
    ),
    # Causal masks that old versions stored, and a second copy of tied embeddings.
    ignored=(
        f"{_LAYER.format(layer='*')}.attn.bias",
        f"{_LAYER.format(layer='*')}.attn.masked_bias",
        "lm_head.weight",
    ),
    prefix="transformer.",
)
