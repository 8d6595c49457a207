"""Weights from a network: it scores the rows of a batch, and the batch shares its weight out by a softmax.

    s_i = score(eta, row i)        w_i = floor + (1 - floor) * rows * softmax(s / temperature)_i

or, so that no good row can outweigh the other good ones, by shares of a sigmoid of the scores.

Any `Scorer` will do: a transformer that reads the rows (`bilevel.weighting.network_encoder`), a network of their losses
or of any signals (`bilevel.weighting.network_features`). All of them begin with equal scores, so that training starts
at weight one for every row, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import NO_SIZES, Batch, Sizes, Weighting
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree
from bilevel.weighting.indices import check_table
from bilevel.weighting.network_signals import mean_of_real, regressed, relative_losses, relative_to_losses

Scope = Literal["global", "device", "micro"]
Form = Literal["softmax", "sigmoid"]
Signal = Literal["exact", "relative", "regression"]
LossForm = Literal["none", "absolute", "relative"]


class Scorer(NamedTuple):
    """A network that scores rows.

    Attributes:
        init: `(key) -> parameters`, at which all rows score alike.
        scores: `(parameters, batch, losses) -> [micro, rows]`, of a batch with its micro-batch axis and losses of its
            rows in the form below. What filler rows score is ignored.
        losses: what `scores` gets of them: nothing (None), `absolute` mean token losses in nats, or losses `relative`
            to the rows that this one competes with, see `relative_losses`.
        joint: whether a row's score depends on what the other rows of its batch say.
        sizes: of the tables that the scorer closes over, which must be those of the rows.
    """

    init: Callable[[Array], PyTree]
    scores: Callable[[PyTree, Batch, Float[Array, "micro rows"] | None], Float[Array, "micro rows"]]
    losses: LossForm = "none"
    joint: bool = False
    sizes: Sizes = NO_SIZES


def network(
    scorer: Scorer,
    form: Form = "softmax",
    signal: Signal = "exact",
    temperature: float = 1.0,
    floor: float = 0.0,
    scope: Scope = "global",
    devices: int = 1,
) -> Weighting:
    """Row weights from a scorer; the outer variables are its parameters.

        w_i = floor + (1 - floor) * rows * m_i / sum_k m_k       over the rows k of one scope
        m_i = exp(s_i / temperature)  (softmax),  or  sigmoid((s_i - mean of s) / temperature)

    Sharing makes rows compete: with a_i the derivative of the upper loss in w_i, that in s_j is, under softmax
    without a floor, (w_j / temperature) (a_j - sum_i w_i a_i / rows): only what a row does better or worse than the
    weighted batch moves the network, and the derivatives of a batch sum to zero. Filler rows weigh nothing and are
    not counted among the rows.

    Args:
        scorer: what scores the rows.
        form: softmax is what weights in a batch usually mean; its weights have no upper bound, and can come down to
            few rows. A sigmoid saturates: rows that are good enough share alike. It is centred, or a common shift of
            all scores, which nothing holds, would take it to where it is a softmax again.
        signal: how a weight's derivative moves the scorer. `exact`: by the chain rule, as the hypergradient, which asks
            what one more gradient of the row does now. `relative`: the same with each row's derivative over its
            loss, which asks whether the row helps or harms, not how much is left to learn from it. `regression`: scores
            descend the squared distance to that relative derivative, standardised; see `regressed`. The last two
            keep the ranks of rows that differ in kind and are no gradients of the upper level; they read row losses.
        temperature: divides the scores, positive; low ones tell rows apart sharply.
        floor: smallest weight, in [0, 1).
        scope: over what rows compete. `global`: the whole batch, over all micro-batches and devices, so that neither
            accumulation nor data parallelism changes a weight. `device`: one device's rows. `micro`: one
            micro-batch, over all devices.
        devices: devices that share each micro-batch's rows, for scope `device`.

    Raises:
        ValueError: for a temperature or floor outside these ranges; at `init`, for a scorer whose table does not fit
            the rows; in scope `device`, when the devices cannot share a batch equally.

    References:
        Calian et al., DataRater, arXiv 2505.17895 (a softmax over the batch); Yu et al., DWM, ICML 2025.
    """
    needs_losses = scorer.losses != "none" or signal != "exact"
    check_ranges(
        {"temperature": temperature, "floor": floor},
        ("temperature", temperature > 0, "positive"),
        ("floor", 0 <= floor < 1, "in [0, 1)"),
    )

    def init(key: Array, sizes: Sizes) -> tuple[PyTree, tuple[()]]:
        for by, length in scorer.sizes.items():
            check_table("network", length, sizes, by)
        return scorer.init(key), ()

    def weights(
        parameters: PyTree, memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        batch, losses = jax.tree.map(jnp.asarray, (dict(batch), losses))
        shape = batch["row_id"].shape
        if len(shape) == 1:  # a batch without a micro-batch axis is its own micro-batch
            batch, losses = jax.tree.map(lambda x: x[None], (batch, losses))
        present = batch["row_id"] >= 0
        groups, axes = _groups(present.shape, scope, devices)
        real = present.reshape(groups)
        means = None if losses is None else losses.means
        read = means if scorer.losses != "none" else None
        if scorer.losses == "relative":
            assert means is not None  # declared by needs_losses
            read = relative_losses(means.reshape(groups), real, axes).reshape(present.shape)
        scores = scorer.scores(parameters, batch, read)
        log_masses = scores.reshape(groups) / temperature
        if form == "sigmoid":
            log_masses = jax.nn.log_sigmoid(log_masses - mean_of_real(log_masses, real, axes))
        shares = _shares(log_masses, real, axes)
        floored = floor + (1 - floor) * shares.reshape(scores.shape)
        found = jnp.where(present, floored, 0.0)
        if signal == "relative":
            assert means is not None  # declared by needs_losses
            found = relative_to_losses(found, present, means)
        if signal == "regression":
            assert means is not None  # declared by needs_losses
            found = regressed(scores, jax.lax.stop_gradient(found), present, means)
        return found.reshape(shape)

    return Weighting(init, weights, needs_losses=needs_losses)


def added(*scorers: Scorer) -> Scorer:
    """One scorer from several: scores add, so that the softmax is of all of them together.

    Args:
        *scorers: at least one; the parameters are a tuple of theirs.

    Raises:
        ValueError: none, some that read losses in different forms, or with tables of different lengths.
    """
    forms = {s.losses for s in scorers if s.losses != "none"}
    if not scorers or len(forms) > 1:
        raise ValueError(
            "added: needs at least one scorer, and all that read losses must read them in one form"
        )

    def init(key: Array) -> PyTree:
        return tuple(s.init(jax.random.fold_in(key, position)) for position, s in enumerate(scorers))

    def scores(
        parameters: PyTree, batch: Batch, losses: Float[Array, "micro rows"] | None
    ) -> Float[Array, "micro rows"]:
        parts = [s.scores(own, batch, losses) for s, own in zip(scorers, parameters, strict=True)]
        return sum(parts[1:], start=parts[0])

    tables = {(by, length) for s in scorers for by, length in s.sizes.items()}
    if len(dict(tables)) < len(tables):
        raise ValueError("added: scorers with tables of different lengths")
    return Scorer(init, scores, forms.pop() if forms else "none", any(s.joint for s in scorers), dict(tables))


def _groups(
    shape: tuple[int, ...], scope: Scope, devices: int
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The shape [micro, devices, rows of a device] of scores, and the axes over which rows compete."""
    micro, rows = shape
    if scope == "device" and rows % devices:
        raise ValueError(f"{devices} devices cannot share micro-batches of {rows} rows")
    axes = {"global": (0, 1, 2), "device": (0, 2), "micro": (1, 2)}[scope]
    return (micro, devices, rows // devices) if scope == "device" else (micro, 1, rows), axes


def _shares(
    scores: Float[Array, "micro devices rows"], real: Bool[Array, "micro devices rows"], axes: tuple[int, ...]
) -> Float[Array, "micro devices rows"]:
    """Rows * softmax over some axes, filler rows left out; exactly one where all scores are equal."""
    lowest = jnp.finfo(scores.dtype).min
    highest = jnp.max(jnp.where(real, scores, lowest), axis=axes, keepdims=True)
    masses = jnp.where(real, jnp.exp(jnp.where(real, scores - jax.lax.stop_gradient(highest), 0.0)), 0.0)
    rows = jnp.sum(real.astype(scores.dtype), axis=axes, keepdims=True)
    # A scope of filler rows alone has no mass to share.
    total = jnp.where(rows > 0, jnp.sum(masses, axis=axes, keepdims=True), 1.0)
    return rows * masses / total
