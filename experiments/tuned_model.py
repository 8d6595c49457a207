"""The model of a run: what of it is trained, how its scores are computed, and the folder that training leaves."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

import models
from bilevel.core import Batch
from bilevel.data import Tokenizer
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS
from experiments.options import LoraOptions, ModelOptions
from models import DecoderConfig, LoraConfig, lora
from models.attention.fused import has_kernel
from models.errors import ModelError
from models.hub import PATTERNS
from models.stored import open_folder

_POSITIONS = 512
_EXACT_UP_TO = 512
"""Row length from which holding all attention scores costs more than it saves."""


@dataclass(frozen=True)
class Compute:
    """How scores are computed.

    Attributes:
        dtype: of the products.
        remat: what the backward pass keeps, see `models.decoder.REMAT`.
        first_order: attention path where values and gradients alone are taken.
        forward: attention path where forward-mode derivatives are, too.
    """

    dtype: str
    remat: str
    first_order: str
    forward: str


def compute_of(options: ModelOptions, config: DecoderConfig, length: int, devices: int = 1) -> Compute:
    """Chooses attention paths for rows of a length on the devices of this process.

    Raises:
        ModelError: a kernel is asked for that this device has not.
    """
    kernel = has_kernel(config.head_dim, options.dtype, devices)
    if options.attention == "fused" and not kernel:
        raise ModelError(
            f"--attention fused: this device has no kernel for heads of {config.head_dim} in {options.dtype} on "
            f"{devices} devices: take auto"
        )
    forward = "exact" if length <= _EXACT_UP_TO else "blockwise"
    if options.attention in ("exact", "blockwise"):
        forward = options.attention
    first_order = "fused" if kernel and options.attention in ("auto", "fused") else forward
    return Compute(options.dtype, options.remat, first_order, forward)


@dataclass(frozen=True)
class TunedModel:
    """A model and what of it is trained: all parameters, or an adapter beside frozen ones.

    Attributes:
        config: the architecture.
        start: the inner variables at the start, float32.
        base: the frozen parameters under an adapter, in the type that is computed in; None without one.
        adapter: settings of the adapter, or None.
        source: the folder that the model was read from.
        name: what a user calls it, for the adapter's folder.
        merge: whether the adapter is written into the parameters.
    """

    config: DecoderConfig
    start: Any
    base: Any = None
    adapter: LoraConfig | None = None
    source: Path | None = None
    name: str = ""
    merge: bool = False

    def parameters(self, inner: Any, dtype: str) -> Any:
        """Returns what the model's functions take, from the inner variables."""
        if self.adapter is not None:
            return lora.attach(self.base, inner, self.adapter)
        return inner if dtype == "float32" else models.cast(inner, dtype)

    def token_scores(self, inner: Any, batch: Batch, compute: Compute, attention: str) -> models.TokenScores:
        """Returns the scores of every token under the inner variables."""
        params = self.parameters(inner, compute.dtype)
        return models.token_scores(params, batch, self.config, attention=attention, remat=compute.remat)

    def logits(self, inner: Any, batch: Batch, compute: Compute, attention: str) -> Array:
        """Returns the logits of every next token, all at once."""
        params = self.parameters(inner, compute.dtype)
        how = {"attention": attention, "remat": compute.remat}
        return models.logits(params, batch["tokens"], batch["segments"], self.config, **how)

    def write(self, folder: Path, inner: Any, tokenizer: Tokenizer) -> None:
        """Writes a folder for transformers, or under an adapter that is not merged one for peft."""
        if self.adapter is not None and not self.merge:
            models.write_adapter(folder, self.config, self.adapter, inner, base=self.name)
            tokenizer.save_pretrained(folder)
            return
        models.write_folder(folder, self.config, self._whole(inner), source=self.source, tokenizer=tokenizer)

    @property
    def described(self) -> str:
        """One line for the user, "" where all parameters are trained."""
        if self.adapter is None:
            return ""
        trained, frozen = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (self.start, self.base))
        maps = ", ".join(self.adapter.targets)
        return f"an adapter of rank {self.adapter.rank} on {maps}: {trained:,} parameters beside {frozen:,} frozen ones"

    def _whole(self, inner: Any) -> Any:
        if self.adapter is None:
            return inner
        # On the host, and from the folder's own numbers: those in memory may be narrower, and fill the device.
        with _on_host():
            base = self.base if self.source is None else models.read_folder(self.source)[1]
            base, inner = jax.tree.map(jnp.asarray, jax.device_get((base, inner)))
            return lora.merge(base, inner, self.adapter)


def _on_host() -> AbstractContextManager[Any]:
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told of accelerators alone
        return nullcontext()


def find_model(options: ModelOptions) -> tuple[Path, DecoderConfig] | None:
    """Returns the folder and the architecture of --model before its weights are touched; None without --model.

    Raises:
        ModelError: no such model, or none that can be read.
    """
    if options.model is None:
        return None
    try:
        # Of a model on the hub everything but the weights, which come when the rows are known to be good.
        folder = models.local_folder(options.model, [p for p in PATTERNS if "safetensors" not in p])
    except ModelError as error:
        raise ModelError(f"{error}: --model FOLDER") from None
    config = models.read_config(folder)
    if Path(options.model).is_dir():
        with ExitStack() as stack:
            open_folder(
                folder, stack
            )  # headers alone: missing and broken files are found before rows are read
    return folder, config


def random_config(options: ModelOptions, vocab_size: int, max_length: int) -> DecoderConfig:
    """Returns the architecture of the small Llama that a run without --model trains."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        mlp_width=options.mlp_width,
        max_positions=max(_POSITIONS, max_length),
        # Rows of unit length: with tied embeddings a narrow model learns far faster.
        init_std=options.width**-0.5,
    )


def begin_adapter(options: LoraOptions, config: DecoderConfig, seed: int) -> tuple[LoraConfig, Any] | None:
    """Returns the settings and the parameters that an adapter begins with; None where all parameters are trained.

    Raises:
        ModelError: targets that match nothing, or an adapter folder that cannot be read.
        InputError: an adapter that could not be written again.
    """
    if options.adapter is not None:
        settings, adapter = models.read_adapter(options.adapter, config, "float32")
        declared = models.abstract_values(lora.declare(config, settings))
        if not options.merge and jax.tree.map(jax.numpy.shape, adapter) != jax.tree.map(
            lambda x: x.shape, declared
        ):
            raise InputError(
                f"{options.adapter}: an adapter of several ranks cannot be written again: add --merge"
            )
        return settings, adapter
    if options.rank is None:
        return None
    settings = LoraConfig(options.rank, options.alpha, models.find_targets(config, options.targets))
    return settings, lora.init(config, settings, jax.random.fold_in(jax.random.key(seed), 1))


def load_model(
    options: ModelOptions,
    lora_options: LoraOptions,
    found: tuple[Path, DecoderConfig] | None,
    config: DecoderConfig,
    mesh: Mesh,
    seed: int,
) -> TunedModel:
    """Reads or draws the parameters, and places them.

    Args:
        options: which model.
        lora_options: what of it is trained.
        found: from `find_model`.
        config: the architecture.
        mesh: devices that hold the parameters.
        seed: of the random model and of a fresh adapter.

    Raises:
        ModelError: unreadable weights, or a width that the devices cannot share.
    """
    begun = begin_adapter(lora_options, config, seed)
    dtype = options.dtype if begun is not None else "float32"
    places: Any = None
    if options.shard:
        places = models.shardings(config, mesh, {"width": AXIS})
    elif begun is not None:
        # Once for the whole run: what is closed over would otherwise travel to the other devices at every step.
        places = NamedSharding(mesh, PartitionSpec())
    if found is not None:
        folder = models.local_folder(options.model or found[0])
        params = models.read_folder(folder, dtype=dtype, shardings=places)[1]
        name = str(folder.resolve() if Path(str(options.model)).is_dir() else options.model)
    else:
        folder, name = None, ""
        params = models.cast(models.init(config, jax.random.key(seed)), dtype)
        params = params if places is None else jax.device_put(params, places)
    if begun is None:
        return TunedModel(config, params, source=folder)
    return TunedModel(config, begun[1], params, begun[0], folder, name, lora_options.merge)
