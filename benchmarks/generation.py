"""Tokens generated a second beside transformers, and the queue beside padded batches.

    python benchmarks/generation.py [--model FOLDER] [--rows POOL.jsonl] [--tokenizer FOLDER] [--repeats 5]

The first table takes turns between JAX and transformers' `generate` (if torch is installed) on the same prompts, and
gives medians. The second answers prompts as long as a pool's, each with as many tokens as the pool's answer has: once
all in one queue, once in batches whose rows are all continued until the longest answer is there. On a machine with
other work, set OMP_WAIT_POLICY=PASSIVE: torch's threads otherwise spin while they wait for each other, and take many
times longer.

Printed on two cores at a load of 18, JAX 0.10.2 and torch 2.13.0, with OMP_WAIT_POLICY=PASSIVE, --repeats 3 and
--limit 256:

    32 prompts of 8 to 64 tokens, 256 new tokens each, median of 3
      jax greedy                      10623 tokens a second   3.75 times transformers (3.06 by processor time)
      jax temperature 1, top-p .9      5279 tokens a second   1.87 times transformers (2.46 by processor time)
      transformers greedy              2830 tokens a second
    256 prompts of 127 tokens (328 at most), answers of 48 (187), 32 rows side by side, median of 3
      padded batches                    712 tokens a second
      queue                            1841 tokens a second   2.58 times padded (1.96 by processor time)
"""

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import models
from bilevel.data import ALPACA, encode_rows, load_tokenizer, read_rows

SHARED = Path(__file__).resolve().parents[2] / "shared"
ROWS = 32


class Cost(NamedTuple):
    """Seconds on the clock, which other work lengthens, and on all processors, which it hardly does."""

    clock: float
    processor: float

    def gain(self, other: "Cost", name: str) -> str:
        clock, processor = other.clock / self.clock, other.processor / self.processor
        return f"   {clock:.2f} times {name} ({processor:.2f} by processor time)"


def alternating(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, Cost]:
    """The median cost of each, all taking turns so that a busy machine slows them alike; the first turn compiles."""
    costs: dict[str, list[Cost]] = {name: [] for name in steps}
    for _ in range(1 + repeats):
        for name, step in steps.items():
            clock, processor = time.perf_counter(), time.process_time()
            step()
            costs[name].append(Cost(time.perf_counter() - clock, time.process_time() - processor))
    return {name: Cost(*map(statistics.median, zip(*each[1:], strict=True))) for name, each in costs.items()}


def prompts_of(lengths: np.ndarray, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocabulary, length).tolist() for length in lengths]


def transformers_step(folder: Path, prompts: list[list[int]], new: int) -> Callable[[], object]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    width = max(map(len, prompts))
    tokens, mask = np.zeros((2, len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    how = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}

    def step() -> object:
        with torch.no_grad():
            return model.generate(**given, **how)

    return step


def compare_with_transformers(folder: Path, repeats: int) -> None:
    model = models.load(folder)
    new = 256
    prompts = prompts_of(np.random.default_rng(1).integers(8, 65, ROWS), model.config.vocab_size)
    greedy, sampled = models.Sampling(new), models.Sampling(new, temperature=1.0, top_p=0.9)
    keys = models.row_keys(jax.random.key(0), range(ROWS))
    steps: dict[str, Callable[[], object]] = {
        "jax greedy": lambda: model.generate(model.params, prompts, None, greedy),
        "jax temperature 1, top-p .9": lambda: model.generate(model.params, prompts, keys, sampled),
    }
    if importlib.util.find_spec("torch"):
        steps["transformers greedy"] = transformers_step(folder, prompts, new)
    else:
        print("no torch here: install the parity extra to compare")
    medians = alternating(steps, repeats)
    print(f"{ROWS} prompts of 8 to 64 tokens, {new} new tokens each, median of {repeats}")
    peer = medians.get("transformers greedy")
    for name, cost in medians.items():
        gain = cost.gain(peer, "transformers") if peer and name.startswith("jax") else ""
        print(f"  {name:28} {ROWS * new / cost.clock:8.0f} tokens a second{gain}")


def pool_lengths(rows: Path, tokenizer: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each prompt and of each answer of a pool."""
    encoded = encode_rows(read_rows(rows).rows[:limit], load_tokenizer(tokenizer), ALPACA, 512).encoded
    answers = encoded.loss_mask.sum(axis=1)
    return (encoded.segments > 0).sum(axis=1) - answers, answers


def compare_queue(folder: Path, prompt_lengths: np.ndarray, answer_lengths: np.ndarray, repeats: int) -> None:
    config, params = models.read_folder(folder)
    config = replace(config, max_positions=1024)  # lengths alone matter here
    prompts, limits = prompts_of(prompt_lengths, config.vocab_size), answer_lengths.tolist()
    sampling = models.Sampling(int(answer_lengths.max()))

    def padded() -> None:
        for start in range(0, len(prompts), ROWS):
            part = slice(start, start + ROWS)
            # Every row of a batch is continued until its longest answer is there.
            longest = [max(limits[part])] * len(limits[part])
            models.generate(params, prompts[part], None, sampling, config, limits=longest)

    def queue() -> None:
        models.generate(params, prompts, None, sampling, config, limits=limits)

    medians = alternating({"padded batches": padded, "queue": queue}, repeats)
    print(
        f"{len(prompts)} prompts of {prompt_lengths.mean():.0f} tokens ({prompt_lengths.max()} at most), answers of "
        f"{answer_lengths.mean():.0f} ({answer_lengths.max()}), {ROWS} rows side by side, median of {repeats}"
    )
    for name, cost in medians.items():
        gain = cost.gain(medians["padded batches"], "padded") if name == "queue" else ""
        print(f"  {name:28} {answer_lengths.sum() / cost.clock:8.0f} tokens a second{gain}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "stories260k")
    parser.add_argument("--rows", type=Path, default=SHARED / "data" / "pool_dolly_short.jsonl")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizers" / "gpt2")
    parser.add_argument("--limit", type=int, default=512, help="rows of the pool")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, JAX {jax.__version__}")
    if not options.model.is_dir():
        print(f"no model: {options.model} is not there")
        return
    compare_with_transformers(options.model, options.repeats)
    if options.rows.is_file() and options.tokenizer.is_dir():
        lengths = pool_lengths(options.rows, options.tokenizer, options.limit)
        compare_queue(options.model, *lengths, options.repeats)
    else:
        print(f"no rows or tokenizer: {options.rows} or {options.tokenizer} is not there")


if __name__ == "__main__":
    main()
