"""What a decoder looks like: sizes and switches, nothing about files or runs."""

import dataclasses

from models.errors import ModelError


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a pre-norm decoder with rotary positions, RMS norms and a gated MLP (Llama).

    How a run executes it (attention path, remat, dtype) is chosen where it is called, so that one description
    serves them all. Hashable: pass it to `jax.jit` as a static argument.

    Raises:
      ModelError: when sizes are not positive or do not fit together.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    """Key/value heads; each is shared by heads // kv_heads query heads."""
    mlp_width: int
    head_dim: int = 0
    """Size of one head; 0 stands for width // heads and is replaced by it."""
    max_positions: int = 2048
    """Longest row the model is made for; several rows packed in one sequence may be longer together."""
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    init_std: float = 0.02
    """Standard deviation of fresh embeddings."""

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
        if self.head_dim % 2:
            raise ModelError(f"head_dim must be even for rotary positions, not {self.head_dim}")
