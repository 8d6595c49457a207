"""What a decoder looks like: sizes and switches, nothing about files or runs."""

import dataclasses

from models.errors import ModelError

KINDS = {"positions": ("rotary", "learned"), "norm": ("rms", "layer"), "mlp": ("gated", "plain")}
"""What each switch between ways of building a layer may be."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretches slow rotations so that a model reads rows longer than it was first trained on (Llama 3).

    Attributes:
        factor: how many times longer the wavelength of a slow rotation becomes.
        low_frequency_factor: wavelengths above original_positions / this are stretched in full.
        high_frequency_factor: wavelengths below original_positions / this stay as they are; between the two, the
            stretch fades in.

    Raises:
        ModelError: when the frequency factors do not enclose a range, or a value is not positive.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ModelError(
                    f"rope scaling: {field.name} must be positive, not {getattr(self, field.name)}"
                )
        if not self.low_frequency_factor < self.high_frequency_factor:
            raise ModelError(
                f"rope scaling: low_frequency_factor {self.low_frequency_factor} must be below "
                f"high_frequency_factor {self.high_frequency_factor}"
            )


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a pre-norm decoder; the defaults of its switches make a Llama.

    How a run executes it (attention path, remat, dtype) is chosen where it is called, so that one description
    serves them all. Hashable: pass it to `jax.jit` as a static argument.

    Attributes:
        vocab_size: tokens of the vocabulary.
        width: size of the residual stream.
        layers: how many layers.
        heads: query heads.
        kv_heads: key/value heads; each is shared by heads // kv_heads query heads.
        mlp_width: size of each layer's MLP.
        head_dim: size of one head; 0 stands for width // heads and is replaced by it.
        max_positions: longest row the model is made for; several rows packed in one sequence may be longer together.
        rope_theta: base of the rotary wavelengths.
        norm_epsilon: what norms add under the root.
        tied_embeddings: whether the embedding also makes the logits.
        attention_bias: biases of the maps to queries, keys and values.
        output_bias: a bias of the map from attention back into the residual stream.
        mlp_bias: biases of the MLP's maps.
        init_std: standard deviation of fresh embeddings.
        rope_scaling: stretches rotary wavelengths; None leaves them.
        window: how many of the last tokens of its segment a token sees, itself included; None for all of them.
        qk_norm: RMS norms of each head's queries and keys, before they are turned (Qwen 3).
        positions: "rotary", or "learned": a table added to the embeddings (GPT-2).
        norm: "rms", or "layer": mean removed, with a bias (GPT-2).
        mlp: "gated": down(silu(gate) * up), or "plain": down(gelu(up)) (GPT-2).

    Raises:
        ModelError: when sizes are not positive or do not fit together.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    head_dim: int = 0
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    init_std: float = 0.02
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    qk_norm: bool = False
    positions: str = "rotary"
    norm: str = "rms"
    mlp: str = "gated"

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.heads > 0:
            if self.width % self.heads:
                raise ModelError(
                    f"width {self.width} is not a multiple of heads {self.heads}: state head_dim"
                )
            object.__setattr__(self, "head_dim", self.width // self.heads)
        for name in (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "mlp_width",
            "head_dim",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("rope_theta", "norm_epsilon", "init_std"):
            if not getattr(self, name) > 0:
                raise ModelError(f"{name} must be positive, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise ModelError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.window is not None and self.window < 1:
            raise ModelError(f"window must be positive, not {self.window}: None stands for no window")
        for name, known in KINDS.items():
            if getattr(self, name) not in known:
                raise ModelError(f"unknown {name} {getattr(self, name)!r}: choose one of {', '.join(known)}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ModelError(f"head_dim must be even for rotary positions, not {self.head_dim}")
