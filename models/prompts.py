"""Token ids as users give them, ragged: what they must be to be read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from models.config import DecoderConfig
from models.errors import ModelError

Prompt = Sequence[int] | Int[np.ndarray, " tokens"]


def check_tokens(texts: Sequence[Prompt], what: str, config: DecoderConfig) -> None:
    """Refuses texts without tokens, and tokens that the model does not know.

    Args:
        texts: token ids.
        what: what a text is called.
        config: the architecture.

    Raises:
        ModelError: the first such text, by its number.
    """
    for number, text in enumerate(texts):
        tokens = np.asarray(text)
        if tokens.size == 0:
            raise ModelError(f"{what} {number} is empty: give it a token at least, such as a start token")
        if tokens.min() < 0 or tokens.max() >= config.vocab_size:
            unknown = tokens.max() if tokens.min() >= 0 else tokens.min()
            raise ModelError(
                f"{what} {number}: token {unknown} is outside the model's vocabulary of {config.vocab_size}: use the "
                "tokenizer that belongs to the model"
            )
