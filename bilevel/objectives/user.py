"""An upper objective of the user's own, named by `MODULE:FUNCTION` or `path/to/file.py:FUNCTION`.

The upper level asks how good the tuned model is; by default by its mean loss on the trusted rows. A function says
it otherwise, and row weights are then learned for that:

    # objective.py                              python -m experiments.bds_alpaca --upper objective.py:poems ...
    import jax.numpy as jnp
    from bilevel.core import Mean

    def poems(params, batch, model):
        losses = model.row_losses(params, batch)
        poem = jnp.array([row.extra.get("category") == "poem" for row in model.rows])
        wanted = poem[batch["row_id"]] & (losses.count > 0)
        return Mean(jnp.sum(wanted * losses.means), jnp.sum(wanted))

It takes by name what it needs of `params` (what is trained, a tree that only `model`'s functions look into), `batch`
(a batch of trusted rows), `model` (an `ObjectiveModel`) and `outer` (one logit a training row). What it returns is
minimised: a `bilevel.core.Mean`, whose sums and counts add up over the parts that a batch is cut into; a `RowLosses`,
of which the mean over rows is taken; or one number, averaged over these parts. It is traced by JAX like any loss.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel.core import Batch, Mean, RowLosses
from bilevel.data import Row, Tokenizer, arrange_rows, text_rows
from bilevel.errors import InputError

NAMES = ("params", "batch", "model", "outer")
"""What an objective may take."""


@dataclass(frozen=True)
class ObjectiveModel:
    """What an objective knows of the model and the trusted rows.

    Attributes:
        row_losses: `(params, batch) -> RowLosses`: a row's loss is the mean over its response tokens, in nats.
        token_scores: `(params, batch) -> TokenScores`: `loss` and `correct` [sequences, tokens], of all tokens;
            `batch["loss_mask"]` says which belong to a response.
        logits: `(params, batch) -> [sequences, tokens, vocabulary]`, float32, of the token after each. All at once:
            mind the memory under a large vocabulary.
        config: the architecture, as the model describes it; None where it does not.
        tokenizer: the model's; None where it has none.
        rows: the trusted rows with their texts and columns; `batch["row_id"]` says which of them a batch holds, -1
            for one that only fills it.
    """

    row_losses: Callable[[Any, Batch], RowLosses]
    token_scores: Callable[[Any, Batch], Any]
    logits: Callable[[Any, Batch], Float[Array, "sequences tokens vocabulary"]]
    config: Any
    tokenizer: Tokenizer | None
    rows: tuple[Row, ...]


def find_objective(where: str, flag: str = "") -> Callable[..., Any]:
    """Imports the objective that `MODULE:FUNCTION` or `FILE.py:FUNCTION` names.

    Args:
        where: what names the function.
        flag: how the user gave it, for messages.

    Raises:
        InputError: there is none, the file cannot be imported, or the function takes what it cannot be given.
    """
    function = named_function(where, flag)
    _check_arguments(f"{flag} {where}".lstrip(), function)
    return function


def named_function(where: str, flag: str = "") -> Callable[..., Any]:
    """Imports the function that `MODULE:FUNCTION` or `FILE.py:FUNCTION` names; arguments as of `find_objective`.

    Raises:
        InputError: there is none, or the file cannot be imported.
    """
    said = f"{flag} {where}".lstrip()
    home, colon, name = where.rpartition(":")
    if not colon or not home or not name:
        raise InputError(f"{said}: write MODULE:FUNCTION or path/to/file.py:FUNCTION")
    module = _import(said, home)
    function = getattr(module, name, None)
    if function is None:
        own = [
            n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
        ]
        raise InputError(f"{said}: {home} has no {name!r}; its functions: {', '.join(own) or 'none'}")
    if not callable(function):
        raise InputError(f"{said}: {name} is no function but {type(function).__name__}")
    return function


def traced_objective(
    said: str, function: Callable[..., Any], model: Any, data: Mapping[str, Any], plan: Any
) -> Callable[[Any, Any, Batch], Mean]:
    """A user's function as an upper objective, tried on the first trusted rows that it will see together.

    Args:
        said: what the user calls it, for messages.
        function: from `find_objective`.
        model: the run's `bilevel.Model`.
        data: its data sets.
        plan: how its batches are cut.

    Raises:
        InputError: as `upper_objective`.
    """
    rows = data["validation"]
    seen = np.arange(min(len(rows), (plan.upper_rows or plan.rows) // plan.accumulate))
    batch = arrange_rows(rows, seen[None], plan.upper_packing or "off").batch(seen)
    outer = jnp.zeros(len(data["pool"]))
    objective_model = model.for_objective(text_rows(rows))
    return upper_objective(said, function, objective_model, outer, model.params, batch)


def upper_objective(
    said: str, function: Callable[..., Any], model: ObjectiveModel, outer: Any, params: Any, batch: Batch
) -> Callable[[Any, Any, Batch], Mean]:
    """A user's function as an upper objective, `(outer, params, batch) -> Mean`, once it has been traced.

    Args:
        said: what the user calls it, for messages.
        function: from `find_objective`.
        model: what it may ask.
        outer: outer variables, or their shapes, to trace it with.
        params: inner variables, likewise.
        batch: a batch of trusted rows, likewise.

    Raises:
        InputError: the function fails when it is traced and differentiated, or returns something else.
    """
    taken = [name for name in inspect.signature(function).parameters if name in NAMES]

    def upper(outer: Any, params: Any, batch: Batch) -> Mean:
        given = {"params": params, "batch": batch, "model": model, "outer": outer}
        return _as_mean(said, function(**{name: given[name] for name in taken}))

    def total(params: Any, outer: Any, batch: Batch) -> Array:
        return upper(outer, params, batch).total

    try:
        # Shapes alone: nothing is computed, but what tracing and differentiating refuse is refused here.
        jax.eval_shape(jax.grad(total), params, outer, batch)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{said}: failed on a batch of trusted rows: {_short(error, _file_of(function))}"
        ) from error
    return upper


def _import(said: str, home: str) -> ModuleType:
    try:
        return _from_file(said, Path(home)) if home.endswith(".py") else importlib.import_module(home)
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == home.partition(".")[0]:
            raise InputError(
                f"{said}: no module {home}: run from the folder that holds it, or give path/to/file.py"
            ) from None
        raise InputError(f"{said}: {home} cannot be imported: {_short(error, home)}") from error


def _from_file(said: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{said.rpartition(':')[0]}: no such file")
    name = f"upper_objective_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # it names a .py file
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while it is still being executed.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _check_arguments(said: str, function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    single = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for parameter in single:
        if parameter.name not in NAMES and parameter.default is parameter.empty:
            raise InputError(
                f"{said}: takes {parameter.name!r}, but is given {', '.join(NAMES)} alone, by these names"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InputError(f"{said}: takes {parameter.name!r} by position alone: remove the / after it")
    if "params" not in [parameter.name for parameter in single]:
        raise InputError(f"{said}: takes no 'params': without them it says nothing about the tuned model")


def _as_mean(said: str, result: Any) -> Mean:
    wanted = "return a bilevel.core.Mean of two numbers, a RowLosses or one number"
    if isinstance(result, RowLosses):
        result = result.weighted()
    if not isinstance(result, Mean):
        if not isinstance(result, jax.Array):
            raise InputError(
                f"{said}: returned {type(result).__name__}, made by no function of JAX; {wanted}"
            )
        result = Mean(result, jnp.ones(()))
    total, count = jnp.asarray(result.total), jnp.asarray(result.count)
    if total.shape or count.shape:
        raise InputError(f"{said}: returned an array of shape {total.shape or count.shape}; {wanted}")
    if not jnp.issubdtype(total.dtype, jnp.floating):
        raise InputError(f"{said}: returned {total.dtype}, which has no gradient; {wanted}")
    wide = jnp.promote_types(total.dtype, jnp.float32)
    return Mean(total.astype(wide), count.astype(wide))


def _file_of(function: Callable[..., Any]) -> str:
    try:
        return inspect.getsourcefile(inspect.unwrap(function)) or ""
    except TypeError:  # built-in, or an instance with __call__
        return ""


def _short(error: Exception, file: str = "") -> str:
    """The error in one line, with the line of the user's file that it came from."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__) if file else []
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(file).resolve()]
    text = str(error).strip().partition("\n")[0]
    return f"{f'line {lines[-1]}: ' if lines else ''}{type(error).__name__}: {text}"
