"""Architectures that are known without a folder: published models, and a small one that a test run trains."""

from models.config import DecoderConfig, RopeScaling

KNOWN = {
    "meta-llama/Llama-3.2-1B": DecoderConfig(
        vocab_size=128256,
        width=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        mlp_width=8192,
        max_positions=131072,
        rope_theta=5e5,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": DecoderConfig(
        vocab_size=128256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        mlp_width=14336,
        max_positions=8192,
        rope_theta=5e5,
        tied_embeddings=False,
    ),
}
"""By name on the hub, so that nothing needs to be downloaded to plan for them."""
_POSITIONS = 512


def small(
    vocab_size: int,
    width: int = 64,
    layers: int = 1,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    mlp_width: int = 256,
    max_length: int = 0,
) -> DecoderConfig:
    """The architecture of a small Llama to train from random weights.

    Args:
        vocab_size: tokens of the vocabulary.
        width: of the residual stream.
        layers: number of layers.
        heads: query heads.
        kv_heads: key/value heads, which divide the query heads.
        mlp_width: of each layer's gated MLP.
        max_length: the longest row to come; the model is made for 512 positions at least.

    Raises:
        ModelError: sizes that do not fit together.

    Examples:
        >>> small(256, 32).head_dim
        8
    """
    return DecoderConfig(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        max_positions=max(_POSITIONS, max_length),
        # Rows of unit length: with tied embeddings a narrow model learns far faster.
        init_std=width**-0.5,
    )
