"""A small model of a user's own, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import jax

import models
from bilevel.data import train_tokenizer
from bilevel.data.corpus import make_corpus


def write_model(folder: Path, **changes: object) -> models.DecoderConfig:
    """Writes a random Llama of 16 x 2 with the tokenizer that it is made for; returns its architecture."""
    texts = [
        text
        for row in make_corpus(0, rows=40, valid=8, test=8).train
        for text in (row.instruction, row.output)
    ]
    tokenizer = train_tokenizer(texts, 300)
    sizes = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "mlp_width": 24, "init_std": 0.25} | changes
    config = models.DecoderConfig(vocab_size=len(tokenizer.get_vocab()), **sizes)
    models.write_folder(folder, config, models.init(config, jax.random.key(7)), tokenizer=tokenizer)
    return config
