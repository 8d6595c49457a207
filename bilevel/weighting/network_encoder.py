"""A scorer that reads rows: a small bidirectional transformer over each row's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.errors import InputError
from bilevel.weighting.encoder_layers import (
    Declaration,
    Tensor,
    block,
    declare_block,
    declare_gated_mlp,
    declare_linear,
    declare_rms_norm,
    gated_mlp,
    initial_values,
    linear,
    rms_norm,
    rotation,
    segment_positions,
    stacked,
)
from bilevel.weighting.network import Scorer


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes of the encoder.

    Attributes:
        width: of the residual stream.
        layers: layers over a row's tokens.
        heads: attention heads; they divide the width into even parts.
        mlp_width: of each layer's gated MLP.
        across_rows: layers of attention across the rows of a batch, after pooling; 0 scores each row alone.

    Raises:
        InputError: sizes that are not positive or do not fit together.
    """

    width: int = 64
    layers: int = 1
    heads: int = 4
    mlp_width: int = 128
    across_rows: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise InputError(f"network {name} {getattr(self, name)} is not positive; give 1 or more")
        if self.across_rows < 0:
            raise InputError(f"network across_rows {self.across_rows} is negative; give 0 or more layers")
        if self.width % (2 * self.heads):
            raise InputError(
                f"network width {self.width} does not split into {self.heads} heads of an even size; "
                f"give a multiple of {2 * self.heads}"
            )


def encoder(vocab_size: int, settings: EncoderSettings = EncoderSettings()) -> Scorer:
    """A transformer that sees a whole row, prompt and response, and says what the row is worth.

        x_t = embedding(token t) + mark(t is of the response)         layers of attention within the row
        z   = [mean of x over the prompt, mean of x over the response]      pooled + gated MLP
        s   = head(z), the head zero at the start

    Padded and packed batches give the same scores. Several micro-batches are read one after another, and again in the
    backward pass, so that memory does not grow with their number. With `across_rows`, pooled rows attend to all rows of
    the batch, of all micro-batches: scores then speak of the row in its batch, and permuting rows permutes scores.

    Args:
        vocab_size: rows of the embedding, those of the language model's tokenizer.
        settings: sizes.

    References:
        Calian et al., DataRater, arXiv 2505.17895 (a non-causal transformer as rater).
    """
    heads = settings.heads

    def init(key: Array) -> PyTree:
        return initial_values(_declare(vocab_size, settings), key)

    def read(parameters: PyTree, batch: Batch) -> Float[Array, "rows width"]:
        tokens, segments = batch["tokens"], batch["segments"]
        x = parameters["embedding"][tokens] + parameters["mark"][batch["loss_mask"].astype(jnp.int32)]
        mask = segments[:, :, None] == segments[:, None, :]
        turn = rotation(segment_positions(segments), settings.width // heads)
        x, _ = jax.lax.scan(
            lambda x, layer: (block(layer, x, mask, heads, turn), None), x, parameters["layers"]
        )
        real = segments > 0
        parts = [_row_means(x, real & chosen, batch) for chosen in (~batch["loss_mask"], batch["loss_mask"])]
        pooled = rms_norm(parameters["pool_norm"], jnp.concatenate(parts, axis=-1))
        pooled = linear(parameters["pool"], pooled)
        return pooled + gated_mlp(parameters["mlp"], rms_norm(parameters["mlp_norm"], pooled))

    def scores(
        parameters: PyTree, batch: Batch, losses: Float[Array, "micro rows"] | None
    ) -> Float[Array, "micro rows"]:
        seen = {
            name: jnp.asarray(batch[name])
            for name in ("tokens", "segments", "loss_mask", "row_id", "token_row")
            if name in batch
        }
        if batch["row_id"].shape[0] == 1:
            rows = read(parameters, jax.tree.map(lambda x: x[0], seen))[None]
        else:
            one = jax.checkpoint(lambda batch: read(parameters, batch), prevent_cse=False)
            rows = jax.lax.map(one, seen)
        if settings.across_rows:
            rows = _mixed(parameters["across_rows"], rows, batch["row_id"] >= 0, heads)
        rows = rms_norm(parameters["head_norm"], rows)
        return linear(parameters["head"], rows)[..., 0]

    return Scorer(init, scores, joint=settings.across_rows > 0)


def _declare(vocab_size: int, settings: EncoderSettings) -> Declaration:
    width, mlp_width = settings.width, settings.mlp_width

    def layers(count: int) -> Declaration:
        return stacked(declare_block(width, mlp_width, count), count)

    def table(rows: int) -> Tensor:
        return Tensor((rows, width), initializers.normal(width**-0.5))

    declared: dict[str, Any] = {
        "embedding": table(vocab_size),
        "mark": table(2),
        "layers": layers(settings.layers),
        "pool_norm": declare_rms_norm(2 * width),
        "pool": declare_linear(2 * width, width),
        "mlp_norm": declare_rms_norm(width),
        "mlp": declare_gated_mlp(width, mlp_width, mlp_width**-0.5),
        "head_norm": declare_rms_norm(width),
        "head": {"kernel": Tensor((width, 1), initializers.zeros)},
    }
    if settings.across_rows:
        declared["across_rows"] = layers(settings.across_rows)
    return declared


def _row_means(
    x: Float[Array, "sequences positions width"], chosen: Bool[Array, "sequences positions"], batch: Batch
) -> Float[Array, "rows width"]:
    """The mean of each row's chosen tokens; zero for a row without any."""
    shares = chosen.astype(x.dtype)
    if "token_row" not in batch:
        total, count = jnp.einsum("stw,st->sw", x, shares), jnp.sum(shares, axis=-1)
    else:
        rows = batch["row_id"].shape[0]
        slots = jnp.where(batch["token_row"] >= 0, batch["token_row"], rows).reshape(-1)
        values = jnp.concatenate([x * shares[..., None], shares[..., None]], axis=-1)
        sums = jax.ops.segment_sum(values.reshape(-1, values.shape[-1]), slots, num_segments=rows + 1)[:rows]
        total, count = sums[:, :-1], sums[:, -1]
    return total / jnp.maximum(count, 1)[:, None]


def _mixed(
    layers: PyTree, rows: Float[Array, "micro rows width"], real: Bool[Array, "micro rows"], heads: int
) -> Float[Array, "micro rows width"]:
    """Rows of a whole batch after attention across them; filler rows are seen by themselves alone."""
    flat, present = rows.reshape(1, -1, rows.shape[-1]), real.reshape(-1)
    mask = (present[None, :] | jnp.eye(present.size, dtype=bool))[None]
    mixed, _ = jax.lax.scan(lambda x, layer: (block(layer, x, mask, heads), None), flat, layers)
    return mixed.reshape(rows.shape)
