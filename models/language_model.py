"""A language model to be trained: what of it is trained, how its scores are computed, what it is written as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import decoder, lora
from models.adapter_folder import write_adapter
from models.attention import path_for
from models.attention.fused import has_kernel
from models.choices import ChoiceScores, choice_log_likelihoods
from models.config import DecoderConfig
from models.folder import read_folder, write_folder
from models.lora import LoraConfig
from models.parameters import Params
from models.precision import cast
from models.prompts import Prompt
from models.sampling import Answer, Sampling, generate, generate_each
from models.scores import TokenScores, token_scores
from models.tokenizer import read_tokenizer, write_tokenizer

Batch = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder with its parameters; `models.load` makes it.

    All parameters are trained, in float32 under products in `dtype`, or an adapter alone, beside frozen ones that are
    held in `dtype`. The functions below are pure, and take the trained ones, `params`, as an argument.

    Attributes:
        config: the architecture.
        params: what training starts from: all parameters, or the adapter's; float32.
        base: the frozen parameters under an adapter; None without one.
        adapter: the adapter's settings; None without one.
        folder: the folder that the model was read from; None for random weights.
        name: what a user calls the model, for the adapter's folder.
        merge: whether `write` adds the adapter into the parameters.
        dtype: what the products are computed in.
        attention: `auto`, or a path of `models.attention.PATHS`. A path without forward-mode derivatives is taken by
            `first_order_scores` alone. `auto` takes the device's kernel there, and elsewhere `exact` for sequences of
            up to 512 tokens, `blockwise` for longer ones.
        remat: what the backward pass keeps, a key of `models.decoder.REMAT`.
        devices: how many devices share a batch; None for all.
        given_tokenizer: a transformers tokenizer to take in place of the folder's.
    """

    config: DecoderConfig
    params: Params
    base: Params | None = None
    adapter: LoraConfig | None = None
    folder: Path | None = None
    name: str = ""
    merge: bool = False
    dtype: str = "float32"
    attention: str = "auto"
    remat: str = "dots"
    devices: int | None = None
    given_tokenizer: Any = None

    def token_scores(self, params: Params, batch: Batch) -> TokenScores:
        """How well each token of a batch is predicted, with every derivative; see `models.token_scores`."""
        return self._scores(params, batch, self._forward_path(batch))

    @property
    def first_order_scores(self) -> Callable[[Params, Batch], TokenScores] | None:
        """`token_scores` by the device's kernel, with values and gradients alone; None where there is none."""
        return self._fused_scores if self._fuses else None

    def logits(self, params: Params, batch: Batch) -> Float[Array, "sequences positions vocab"]:
        """Float32 scores of every next token, all at once, with every derivative."""
        how = {"attention": self._forward_path(batch), "remat": self.remat}
        return decoder.logits(self.whole(params), batch["tokens"], batch["segments"], self.config, **how)

    def hidden(self, params: Params, batch: Batch) -> Float[Array, "sequences positions width"]:
        """Final hidden states, after the last norm, with no vocabulary in sight; see `models.decoder.hidden`."""
        how = {"attention": self._forward_path(batch), "remat": self.remat}
        return decoder.hidden(self.whole(params), batch["tokens"], batch["segments"], self.config, **how)

    def generate(
        self,
        params: Params,
        prompts: Sequence[Prompt],
        keys: Array | None,
        sampling: Sampling,
        **how: Any,
    ) -> list[Answer]:
        """An answer to each prompt, in their order; see `models.generate`, also for `how`."""
        how = {"attention": self._reading_path} | how
        return generate(self.whole(params), prompts, keys, sampling, self.config, **how)

    def generate_each(
        self,
        params: Params,
        prompts: Sequence[Prompt],
        keys: Array | None,
        sampling: Sampling,
        **how: Any,
    ) -> Iterator[tuple[int, Answer]]:
        """The number of each prompt and its answer, as they end; see `models.generate_each`, also for `how`."""
        how = {"attention": self._reading_path} | how
        return generate_each(self.whole(params), prompts, keys, sampling, self.config, **how)

    @property
    def sampling(self) -> type[Sampling]:
        """How `generate` is told to draw."""
        return Sampling

    def choices(
        self, params: Params, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Prompt]], **how: Any
    ) -> list[ChoiceScores]:
        """How likely continuations of each prompt are; see `models.choice_log_likelihoods`, also for `how`."""
        how = {"attention": self._reading_path} | how
        return choice_log_likelihoods(self.whole(params), prompts, continuations, self.config, **how)

    def whole(self, params: Params) -> Params:
        """What the functions of `models` take: all parameters in the type of the products, adapters attached."""
        if self.adapter is not None:
            assert self.base is not None
            return lora.attach(self.base, params, self.adapter)
        return params if self.dtype == "float32" else cast(params, self.dtype)

    def write(self, folder: str | Path, params: Params, tokenizer: Any = None) -> None:
        """Writes a folder that transformers loads; for an adapter that is not to be merged, one that peft loads.

        Args:
            folder: where to; made where it is absent.
            params: what was trained.
            tokenizer: a transformers tokenizer to write beside; by default the model's.

        Raises:
            ModelError: the architecture is no checkpoint's, or its source has gone.
        """
        if self.adapter is None or self.merge:
            tokenizer = self.given_tokenizer if tokenizer is None else tokenizer
            write_folder(folder, self.config, self._merged(params), source=self.folder, tokenizer=tokenizer)
            return
        write_adapter(folder, self.config, self.adapter, params, base=self.name)
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        if tokenizer is not None:
            write_tokenizer(tokenizer, Path(folder))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that was given or that lies in the folder, read when first asked for; None without one."""
        if self.given_tokenizer is not None or self.folder is None:
            return self.given_tokenizer
        return read_tokenizer(self.folder)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return _size(self.params)

    @property
    def frozen(self) -> int:
        """Number of frozen parameters under an adapter."""
        return _size(self.base)

    @property
    def described(self) -> str:
        """One line on the adapter for the user, "" where all parameters are trained."""
        if self.adapter is None:
            return ""
        return (
            f"an adapter of rank {self.adapter.rank} on {', '.join(self.adapter.targets)}: "
            f"{self.trained:,} parameters beside {self.frozen:,} frozen ones"
        )

    @property
    def _fuses(self) -> bool:
        devices = self.devices or jax.device_count()
        return self.attention in ("auto", "fused") and has_kernel(self.config.head_dim, self.dtype, devices)

    @property
    def _reading_path(self) -> str:
        return "fused" if self._fuses else self.attention

    def _fused_scores(self, params: Params, batch: Batch) -> TokenScores:
        return self._scores(params, batch, "fused")

    def _scores(self, params: Params, batch: Batch, attention: str) -> TokenScores:
        return token_scores(self.whole(params), batch, self.config, attention=attention, remat=self.remat)

    def _forward_path(self, batch: Batch) -> str:
        name = "auto" if self.attention == "fused" else self.attention
        return path_for(name, batch["tokens"].shape[-1])

    def _merged(self, params: Params) -> Params:
        if self.adapter is None:
            return params
        # On the host, and from the folder's own numbers: those in memory may be narrower, and fill the device.
        with _on_host():
            base = self.base if self.folder is None else read_folder(self.folder)[1]
            base, params = jax.tree.map(jnp.asarray, jax.device_get((base, params)))
            return lora.merge(base, params, self.adapter)


def _on_host() -> AbstractContextManager[Any]:
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told of accelerators alone
        return nullcontext()


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
