"""DWM, data weighting model: a network weighs the rows of each batch, and learns from the model's own next step.

Yu et al., DWM, ICML 2025 (arXiv 2507.16178). A reconstruction: no public implementation exists, and only the abstract,
a figure caption and readings by others could be read. They say: a separate model weighs the samples of a batch; it is
frozen while the language model trains; the two take turns, in five stages; it minimises the validation loss of the
model that was trained with its weights, by the chain rule through that update.

    scores    s = phi_eta(x_1 .. x_B)                 weights   w = B softmax(s / temperature)
    lower     theta' = theta - u(g),                  g = (1/B) sum_i w_i grad l_i(theta)
    upper     min over eta   L_val(theta'(eta))

    with P = d u / d g and q = grad L_val(theta'):
    a_i = d L_val / d w_i = -(1/B) < grad l_i(theta), P q >          one forward-mode pass for all rows
    b_j = d L_val / d s_j = (w_j / temperature) (a_j - sum_i w_i a_i / B),      d eta = (d s / d eta)^T b

    paper      here                              paper     here
    theta      inner variables                   L_val     upper
    eta        outer variables, the network      l_i       row_losses
    phi        scorer                            u         the whole optax chain, with its moments and clipping

What the readings leave open is a setting, its default the choice that reads most naturally unless measured otherwise:
the network's form, the scope of the softmax, the uniform first stages, the number of hypergradient steps, whether the
model keeps the steps that the network learns from (`model_steps`), and how weights are shared out (`form`, `signal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import jax
import optax

from bilevel.core import (
    Batch,
    EstimatorSettings,
    Mean,
    RowProblem,
    alternating,
    implicit,
    optimizer_aware,
    unroll,
)
from bilevel.core.ranges import check_ranges
from bilevel.core.solver import Solver
from bilevel.errors import InputError
from bilevel.methods.method import Checkable, Data, Method
from bilevel.methods.training import TrainingSettings
from bilevel.model import as_model, token_count
from bilevel.objectives import mean_loss
from bilevel.schedule import BatchPlan, Choose, Move, Round, Score, Steps, Train, Weigh
from bilevel.schedule import top_share as top_share_of
from bilevel.weighting import EncoderSettings
from bilevel.weighting.network import Form, Scope, Signal
from bilevel.weighting.network_description import NetworkDescription, Reads


@dataclass(frozen=True)
class DWMSettings:
    """Settings of DWM.

    Attributes:
        network: what scores a row: a transformer that reads its `tokens`, a network of its present `loss`
            (Meta-Weight-Net), one of its `relative_loss` in the batch, or the sum of the first and the last.
        encoder: sizes of the transformer.
        hypergradient: `one_step`, exact through the model's next step, or `unroll`, exact through several.
        unroll_steps: of the model, for each step of the network under `unroll`.
        stages: rounds of training; the model's steps are shared out evenly among them.
        warmup_stages: first rounds that train at uniform weights.
        hypergradient_steps: steps of the network at the start of each later stage; it is frozen for the stage's rest.
        model_steps: `virtual` steps of the model are put back after the network has learned from them; `committed` ones
            are kept and count as training, and a network that learns in all of a stage's steps is never frozen.
        every: solver steps for one step of the network where steps are committed.
        learning_rate: of the network (AdamW), which falls to 0 along a cosine over all of its steps.
        weight_decay: of the network's matrices, decoupled.
        form: how a batch shares its weight out: by `softmax`, or by `sigmoid` shares, which saturate.
        signal: how a weight's derivative moves the network: as it is (`exact`), `relative` to the row's loss, or as
            what scores regress on (`regression`).
        temperature: divides the scores.
        floor: smallest weight, in [0, 1).
        scope: over what rows compete: the `global` batch, a `device`'s part of it, or a `micro`-batch.
    """

    network: Reads = "tokens"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    hypergradient: Literal["one_step", "unroll"] = "one_step"
    unroll_steps: int = 2
    stages: int = 5
    warmup_stages: int = 1
    hypergradient_steps: int = 100
    model_steps: Literal["virtual", "committed"] = "virtual"
    every: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    form: Form = "softmax"
    signal: Signal = "exact"
    temperature: float = 1.0
    floor: float = 0.0
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("stages", self.stages >= 1, "1 or more"),
            ("warmup_stages", 0 <= self.warmup_stages < self.stages, "from 0 to one less than stages"),
            ("hypergradient_steps", self.hypergradient_steps >= 1, "1 or more"),
            ("every", self.every >= 1, "1 or more"),
            ("unroll_steps", self.unroll_steps >= 1, "1 or more"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("temperature", self.temperature > 0, "positive"),
            ("floor", 0 <= self.floor < 1, "in [0, 1)"),
        )
        if self.every > 1 and self.model_steps == "virtual":
            raise ValueError("every counts the model's own steps between those of the network: commit them")


def dwm(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    settings: DWMSettings = DWMSettings(),
    upper: Callable[[Any, Any, Batch], Mean] | None = None,
    vocab_size: int | None = None,
    top_share: float = 0.5,
    devices: int = 1,
) -> Method:
    """DWM as a method.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: `pool`, the rows to weigh, and `validation`, the trusted ones.
        training: how the lower level is trained.
        settings: what this method adds.
        upper: `(outer, params, batch) -> Mean` on trusted rows; by default their mean loss.
        vocab_size: tokens that the network's embedding knows; by default those of the model's tokenizer.
        top_share: share of the pool that is selected at the end, in (0, 1].
        devices: that share a batch, for scope `device`.

    Returns:
        The method, of one round a stage: in a warm-up stage the model trains at uniform weights; in the others the
        network takes its steps, and the model trains with the network frozen. The last round ends with the weights of
        all rows and the set `selected`.

    Raises:
        InputError: stages that are too short for the committed steps.
    """
    chosen = as_model(model)
    training = training.over(len(data["pool"]))
    made, words = describe(settings), vocab_size or token_count(chosen)
    weighting = made.weighting(words, devices, settings.signal)
    upper = upper or mean_loss(chosen.first_order)
    problem = RowProblem(chosen.row_losses, weighting, upper, first_order=chosen.first_order)
    hypergradient = implicit(optimizer_aware()) if settings.hypergradient == "one_step" else unroll()
    solver = alternating(problem, training.optimizer(), _network_optimizer(settings), hypergradient)
    rounds = [
        _stage(problem, solver, training.plan, settings, number, steps)
        for number, steps in enumerate(_stage_lengths(training.steps, settings.stages), start=1)
    ]
    # Rows that are scored alone share one batch of the whole pool; jointly scored ones are weighed in batches.
    weigh = Weigh(weighting, as_one_batch=not made.scorer(words).joint)
    select = Choose(top_share_of("weight", top_share), into="selected", signals=("weight",))
    rounds[0] = (Score("loss_start"), *rounds[0])
    rounds[-1] = (*rounds[-1], weigh, Score("loss_end"), select)
    exact = problem._replace(weighting=made.weighting(words, devices, "exact"))
    looked_through = settings.unroll_steps if settings.hypergradient == "unroll" else 1
    check = Checkable(
        lambda step: EstimatorSettings("unroll" if settings.hypergradient == "unroll" else "optimizer_aware"),
        training.optimizer(),
        looked_through,
        exact,
        _not_exact(settings.signal),
    )
    schedule = tuple(Round(moves) for moves in rounds)
    return Method(problem, solver, schedule, check=check, name="dwm", inner=training.optimizer())


def describe(settings: DWMSettings) -> NetworkDescription:
    """The network that these settings make."""
    return NetworkDescription(
        settings.network,
        settings.encoder,
        settings.form,
        settings.temperature,
        settings.floor,
        settings.scope,
    )


def extra_steps(
    training: TrainingSettings,
    settings: DWMSettings,
    vocab_size: int,
    model_parameters: int,
    fused: bool = False,
) -> int:
    """How many plain training steps cost what DWM computes beyond the training steps of its model.

    In gradients of one lower batch, a forward pass being a third of one: a step of the network is the upper gradient
    (by its share of rows), one forward-mode pass (three thirds, or two where it shares the lower step's forward pass),
    the gradient of the network (by its share of the model's parameters, embeddings left out, for they multiply
    nothing), and the model's own steps where they are virtual or looked through again; every step scores its rows, and
    runs them forward first where the network reads losses and the batch comes in micro-batches.

    Args:
        training: how the lower level is trained.
        settings: of DWM.
        vocab_size: of the tokenizer.
        model_parameters: of the language model.
        fused: whether the model's gradients come from kernels without forward-mode derivatives.
    """
    shapes = jax.eval_shape(describe(settings).scorer(vocab_size).init, jax.random.key(0))
    looked_up = vocab_size * settings.encoder.width if "tokens" in settings.network else 0
    network = max(0, sum(leaf.size for leaf in jax.tree.leaves(shapes)) - looked_up) / model_parameters
    micro_batches = training.accumulate > 1
    reads_losses = settings.network != "tokens" or settings.signal != "exact"
    scoring = (network + (reads_losses and micro_batches)) / 3
    shared = settings.hypergradient == "one_step" and not (micro_batches or fused)
    looked_through = settings.unroll_steps if settings.hypergradient == "unroll" else 1
    virtual = looked_through if settings.model_steps == "virtual" else 0
    passes = 3 * looked_through - 2 - shared / 3
    learning = training.upper_rows / training.batch_rows + passes + network + virtual
    learned = settings.hypergradient_steps * (settings.stages - settings.warmup_stages)
    # Uniform stages are scored, too: the weighting does not know that its network has not moved.
    return math.ceil(learned * learning + (training.steps + virtual * learned) * scoring)


def _stage(
    problem: RowProblem, solver: Solver, plan: BatchPlan, settings: DWMSettings, number: int, steps: int
) -> tuple[Move, ...]:
    """The moves of one stage, which trains the model for `steps` steps."""
    if number <= settings.warmup_stages:
        return (Train(problem, solver, Steps(steps), plan, updates=("inner",)),)
    looked_through = settings.unroll_steps if settings.hypergradient == "unroll" else 1
    learning = replace(plan, lower_steps=looked_through)
    if settings.model_steps == "virtual":
        learn = Train(problem, solver, Steps(settings.hypergradient_steps), learning, updates=("outer",))
        frozen = steps
    else:
        solver_steps = settings.hypergradient_steps * settings.every
        learn = Train(problem, solver, Steps(solver_steps), learning, outer_every=settings.every)
        frozen = steps - solver_steps * looked_through
    if frozen < 0:
        raise InputError(
            f"hypergradient_steps {settings.hypergradient_steps} commit {steps - frozen} steps of the model, but stage "
            f"{number} of {settings.stages} trains for {steps}: lower them, or take fewer stages"
        )
    train = (Train(problem, solver, Steps(frozen), plan, updates=("inner",)),) if frozen else ()
    return learn, *train


def _stage_lengths(steps: int, stages: int) -> list[int]:
    """Model steps of each stage, as equal as whole numbers allow."""
    if steps < stages:
        raise InputError(f"{steps} steps cannot be shared out among {stages} stages: take fewer stages")
    ends = [steps * number // stages for number in range(stages + 1)]
    return [end - start for start, end in pairwise(ends)]


def _not_exact(signal: Signal) -> str:
    if signal == "exact":
        return ""
    return (
        f"the network learns from the signal {signal}, which is no gradient of the trusted loss; the derivative that "
        "the signal is made of is checked"
    )


def _network_optimizer(settings: DWMSettings) -> optax.GradientTransformation:
    # The model's learning rate and with it what a step tells of a row fall towards the end, and AdamW would scale what
    # is left, mostly noise, up to full steps.
    steps = settings.hypergradient_steps * (settings.stages - settings.warmup_stages)
    return optax.adamw(
        optax.cosine_decay_schedule(settings.learning_rate, steps),
        weight_decay=settings.weight_decay,
        mask=lambda parameters: jax.tree.map(lambda leaf: leaf.ndim > 1, parameters),
    )
