"""Choosing rows: lazy greedy beside plain loops, blocked neighbours beside scikit-learn, packed beside padded passes.

    python benchmarks/curate.py [--parts greedy,neighbours,signals] [--rows-of POOL.jsonl] [--tokenizer FOLDER]

Everything is a ratio within one run. The plain loop is timed on a prefix of its picks, which must be the lazy ones, in
two forms: as published (the matrix is summed and its columns are scaled in place for every pick) and with one product
of matrix and weights a pick. scikit-learn's neighbours are timed on a prefix of the queries.

Printed on two cores that some fifteen other processes shared, JAX 0.10.2, with --vectors 13000 and --limit 384; seconds
are up to ten times those of a quiet machine (the lazy selection takes 0.6 s of processor time), ratios are not:

    2600 of 52000 rows, 4,099,587 n-grams in rows
      lazy greedy            2.09 s
      plain, published      135.3 s  from 12 picks, the same picks; 65 times lazy
      plain, products       160.8 s  from 60 picks, the same picks; 77 times lazy
    2 neighbours of 13000 x 1024, 51 MiB of vectors
      blocked                51.9 s   at most 25 MiB more than before
      scikit-learn, cosine                139.1 s  from 1000 queries; 2.68 times blocked, 100.0% agree
      scikit-learn, euclidean of units     94.7 s  from 1000 queries; 1.83 times blocked, 100.0% agree
    complexity of 384 rows of 163 tokens on average, at most 383
      packed       9.5 rows a second
      padded       3.0 rows a second
      packed 3.18 times padded
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import models
from bilevel import as_model
from bilevel.curate import complexity, measure_rows, neighbours, pick_diverse, word_terms
from bilevel.data import ALPACA, EncodedRows, encode_rows, load_tokenizer, read_rows

SHARED = Path(os.environ.get("BILEVEL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
ROWS, SHARE, WIDTH, NEAREST = 52_000, 0.05, 1024, 2
WORDS_KNOWN, MEAN_WORDS = 30_000, 34
"""Of the stand-in texts: as long as Alpaca's responses, words by Zipf's law."""
CONFIG = models.DecoderConfig(vocab_size=1024, width=128, layers=4, heads=4, kv_heads=4, mlp_width=344)
MIB = 2**20


def texts(rows: int) -> list[str]:
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.geometric(1 / MEAN_WORDS, rows))
    ranks = np.minimum(rng.zipf(1.3, lengths.sum()), WORDS_KNOWN)
    words = np.array([f"w{rank}" for rank in range(WORDS_KNOWN + 1)])[ranks]
    return [" ".join(line) for line in np.split(words, np.cumsum(lengths)[:-1])]


def published_loop(complexity: np.ndarray, terms, count: int, decay: float) -> list[int]:
    """As published: row sums of the weighted matrix for every pick, its columns scaled where they stand."""
    weighted, picked = terms.tocsc(), []
    for _ in range(count):
        scores = complexity * np.asarray(weighted.sum(axis=1)).ravel()
        scores[picked] = 0.0
        best = int(np.argmax(scores))
        picked.append(best)
        for column in terms[best].indices:
            weighted.data[weighted.indptr[column] : weighted.indptr[column + 1]] *= decay
    return picked


def product_loop(complexity: np.ndarray, terms, count: int, decay: float) -> list[int]:
    """The best that a plain loop can do: one product of matrix and weights for every pick."""
    worth, picked = np.ones(terms.shape[1]), []
    for _ in range(count):
        scores = complexity * (terms @ worth)
        scores[picked] = 0.0
        best = int(np.argmax(scores))
        picked.append(best)
        worth[terms[best].indices] *= decay
    return picked


def greedy() -> None:
    began = time.perf_counter()
    terms = word_terms(texts(ROWS)).matrix
    counted = time.perf_counter() - began
    scores, count = np.random.default_rng(1).uniform(0.2, 1.0, ROWS), int(SHARE * ROWS)
    print(f"{count} of {ROWS} rows, {terms.nnz:,} n-grams in rows, TF-IDF {counted:.1f} s")
    lazy = min(timed(lambda: pick_diverse(scores, terms, count)) for _ in range(3))
    ids = pick_diverse(scores, terms, count).ids
    print(f"  lazy greedy        {lazy:8.2f} s")
    for name, loop, prefix in (
        ("plain, published", published_loop, 12),
        ("plain, products", product_loop, 60),
    ):
        began = time.perf_counter()
        found = loop(scores, terms, prefix, 0.1)
        seconds = (time.perf_counter() - began) * count / prefix
        same = "the same picks" if found == ids[:prefix].tolist() else "OTHER PICKS"
        print(f"  {name:18} {seconds:8.1f} s  from {prefix} picks, {same}; {seconds / lazy:.0f} times lazy")


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def nearest(rows: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    vectors = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
    neighbours(vectors[:9000], NEAREST)  # compiled for these blocks
    print(f"{NEAREST} neighbours of {rows} x {WIDTH}, {vectors.nbytes / MIB:.0f} MiB of vectors")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    ours = neighbours(vectors, NEAREST)
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(f"  blocked            {seconds:8.1f} s   at most {grown:.0f} MiB more than before")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    prefix = rows // 13
    for name, held, given in (
        ("cosine", vectors, {"metric": "cosine"}),
        ("euclidean of units", unit, {"metric": "euclidean"}),
    ):
        peer = NearestNeighbors(n_neighbors=NEAREST + 1, algorithm="brute", **given).fit(held)
        began = time.perf_counter()
        _, found = peer.kneighbors(held[:prefix])
        peers = (time.perf_counter() - began) * rows / prefix
        agree = np.mean(found[:, 1:] == ours.ids[:prefix])
        print(
            f"  scikit-learn, {name:18} {peers:8.1f} s  from {prefix} queries; {peers / seconds:.2f} times blocked, "
            f"{agree:.1%} agree"
        )


def signals(path: Path, tokenizer: Path, limit: int) -> None:
    encoded = encode_rows(read_rows(path).rows[:limit], load_tokenizer(tokenizer), ALPACA, 512).encoded
    # Lengths alone matter here: the small model's vocabulary is not the tokenizer's.
    rows = EncodedRows(encoded.rows, encoded.tokens % CONFIG.vocab_size, encoded.segments, encoded.loss_mask)
    packs = as_model(models.load(CONFIG))
    lengths = rows.lengths
    print(
        f"complexity of {len(rows)} rows of {lengths.mean():.0f} tokens on average, at most {lengths.max()}"
    )
    rates = {}
    for name, model in (("packed", packs), ("padded", replace(packs, packs=False))):
        measure = complexity()
        some = rows.select(np.arange(min(len(rows), 256)))
        measure_rows(measure, model, some)
        seconds = timed(lambda model=model, measure=measure: measure_rows(measure, model, rows))
        rates[name] = len(rows) / seconds
        print(f"  {name}  {rates[name]:8.1f} rows a second")
    print(f"  packed {rates['packed'] / rates['padded']:.2f} times padded")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="greedy,neighbours,signals")
    parser.add_argument("--rows-of", type=Path, default=SHARED / "data" / "pool_dolly_short.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "gpt2")
    parser.add_argument("--limit", type=int, default=1024, help="rows of the pool")
    parser.add_argument("--vectors", type=int, default=ROWS, help="rows to find neighbours of")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, JAX {jax.__version__}")
    parts = options.parts.split(",")
    if "greedy" in parts:
        greedy()
    if "neighbours" in parts:
        nearest(options.vectors)
    if "signals" in parts and options.rows_of.is_file() and options.tokenizer.is_dir():
        signals(options.rows_of, options.tokenizer, options.limit)


if __name__ == "__main__":
    main()
