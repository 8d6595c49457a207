"""One gradient step beside torch eager, and packed against padded rows.

    python benchmarks/first_order.py [--rows POOL.jsonl] [--tokenizer FOLDER] [--repeats 30]

The first table takes turns between JAX and torch (if torch is installed) on the same shapes, and gives medians; the
second counts real tokens a second on the lengths of a pool of rows. On a machine with other work, set
OMP_WAIT_POLICY=PASSIVE: torch's threads otherwise spin while they wait for each other, and take many times longer.

Printed on two shared cores, JAX 0.10.2 and torch 2.13.0, with OMP_WAIT_POLICY=PASSIVE, the pool being Dolly's short
rows in GPT-2's tokens (packing gained 2.8 and 3.0 in two runs):

    jax forward                    27.9 ms   0.45 of torch
    jax gradient                  135.3 ms   0.75 of torch
    jax gradient, remat none      175.9 ms   0.98 of torch
    jax gradient, remat full      141.8 ms   0.79 of torch
    torch forward                  61.9 ms
    torch gradient                179.7 ms

    padded  32 x 408      1829 ms     1897 tokens a second
    packed  12 x 408       648 ms     5348 tokens a second   2.82 times padded
"""

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import models
from bilevel.data import ALPACA, EncodedRows, Order, encode_rows, load_tokenizer, pack_rows, read_rows
from bilevel.objectives import response_losses

CONFIG = models.DecoderConfig(vocab_size=1024, width=128, layers=4, heads=4, kv_heads=4, mlp_width=344)
ROWS, LENGTH = 32, 64
SHARED = Path(__file__).resolve().parents[2] / "shared"


def jax_steps() -> dict[str, Callable[[], object]]:
    params = models.init(CONFIG, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, CONFIG.vocab_size)
    batch = {"tokens": tokens, "segments": jnp.ones_like(tokens)}

    def loss(params: dict, remat: str = "dots") -> jax.Array:
        return jnp.mean(models.token_scores(params, batch, CONFIG, remat=remat).loss[:, 1:])

    functions = {"forward": loss, "gradient": jax.grad(loss)}
    functions |= {f"gradient, remat {r}": jax.grad(partial(loss, remat=r)) for r in ("none", "full")}
    compiled = {name: jax.jit(function).lower(params).compile() for name, function in functions.items()}
    return {name: lambda c=c: jax.block_until_ready(c(params)) for name, c in compiled.items()}


def torch_steps() -> dict[str, Callable[[], object]]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.width,
            num_hidden_layers=CONFIG.layers,
            num_attention_heads=CONFIG.heads,
            num_key_value_heads=CONFIG.kv_heads,
            intermediate_size=CONFIG.mlp_width,
            tie_word_embeddings=CONFIG.tied_embeddings,
        )
    )
    tokens = torch.randint(0, CONFIG.vocab_size, (ROWS, LENGTH))

    def forward() -> object:
        with torch.no_grad():
            return model(input_ids=tokens, labels=tokens).loss

    def gradient() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=tokens, labels=tokens).loss.backward()

    return {"forward": forward, "gradient": gradient}


def alternating(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, all taking turns so that a busy machine slows them alike."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def compare_with_torch(repeats: int) -> None:
    print(
        f"{ROWS} rows of {LENGTH} tokens, {os.cpu_count()} cores, JAX {jax.__version__}, median of {repeats}"
    )
    ours = {f"jax {name}": step for name, step in jax_steps().items()}
    theirs = {}
    if importlib.util.find_spec("torch"):
        theirs = {f"torch {name}": step for name, step in torch_steps().items()}
    else:
        print("  no torch here: install the parity extra to compare")
    medians = alternating(ours | theirs, repeats)
    for name, value in medians.items():
        peer = medians.get(f"torch {name.removeprefix('jax ').split(',')[0]}") if name in ours else None
        print(f"  {name:26} {value:8.1f} ms" + (f"   {value / peer:.2f} of torch" if peer else ""))


def encoded_pool(path: Path, tokenizer: Path, limit: int) -> EncodedRows:
    rows = read_rows(path).rows[:limit]
    encoded = encode_rows(rows, load_tokenizer(tokenizer), ALPACA, 512).encoded
    # Lengths alone matter here: the small model's vocabulary is not the tokenizer's.
    return EncodedRows(encoded.rows, encoded.tokens % CONFIG.vocab_size, encoded.segments, encoded.loss_mask)


def compare_packing(pool: EncodedRows, repeats: int) -> None:
    params = models.init(CONFIG, jax.random.key(0))
    losses = response_losses(lambda params, batch: models.token_scores(params, batch, CONFIG))
    gradient = jax.jit(jax.grad(lambda params, batch: jnp.mean(losses(params, batch).means)))
    order = Order(len(pool), seed=0)
    chosen = [order.take(step * ROWS, ROWS) for step in range(repeats)]
    packed = pack_rows(pool, (order.take(step * ROWS, ROWS) for step in range(len(pool) // ROWS)))
    batches = {"padded": list(map(pool.batch, chosen)), "packed": list(map(packed.batch, chosen))}
    tokens = int(np.mean([batch["segments"].astype(bool).sum() for batch in batches["packed"]]))
    print(f"{ROWS} rows a batch, {tokens} tokens of the pool on average, median of {repeats} gradients")
    turns = {name: iter([held[0], *held]) for name, held in batches.items()}
    medians = alternating(
        {name: lambda t=t: jax.block_until_ready(gradient(params, next(t))) for name, t in turns.items()},
        repeats,
    )
    for name, value in medians.items():
        shape = " x ".join(map(str, batches[name][0]["tokens"].shape))
        gain = f"   {medians['padded'] / value:.2f} times padded" if name == "packed" else ""
        print(f"  {name}  {shape:9} {value:8.0f} ms {1e3 * tokens / value:8.0f} tokens a second{gain}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=SHARED / "data" / "pool_dolly_short.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "gpt2")
    parser.add_argument("--limit", type=int, default=4000, help="rows of the pool")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    compare_with_torch(options.repeats)
    if options.rows.is_file() and options.tokenizer.is_dir():
        compare_packing(
            encoded_pool(options.rows, options.tokenizer, options.limit), max(2, options.repeats // 6)
        )
    else:
        print(f"no rows or tokenizer to pack: {options.rows} or {options.tokenizer} is not there")


if __name__ == "__main__":
    main()
