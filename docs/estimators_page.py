"""Writes docs/estimators.md from the table of estimators and the cases that the tests hold it to.

python -m docs.estimators_page
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from bilevel.core.estimators import ESTIMATORS
from tests.float64.estimator_cases import CASES, Case, described, measured

PAGE = Path(__file__).resolve().parent / "estimators.md"
EXACT = 1e-9
"""Errors below this are rounding, and differ between machines."""

INTRODUCTION = """# Estimators

The hypergradient is the derivative of the upper level through the lower level's training. `--hypergradient NAME`, or
`make_solver(EstimatorSettings(NAME), ...)`, chooses how it is estimated. This page is written from the table that the
library and its tests use (`python -m docs.estimators_page`); the errors are measured when it is written, and a
test compares them with those of the present code.

## Which one

- **A language model under Adam, one logit a row or a weight network:** `optimizer_aware`. Exact for the step that is
  taken, no second derivative, the cost of one more gradient and of two forward passes.
- **Rows are hard or noisy but useful, and second derivatives are unwelcome:** `penalty`, whose second copy is one more
  adapter under LoRA. `penalty_single` where one copy is all that fits.
- **The lower level is trained to its optimum** (a head, an adapter on few rows, a convex problem):
  `conjugate_gradient`, with `gauss_newton` and a little damping if a network is involved.
- **The outer variables are few** (a mixture of sources, a learning rate): `unroll` with mode `forward`, or without any
  derivative `evolution_strategies`.
- **Some steps of training are what matters, not their limit:** `unroll`, or `whole_run` where records of all of them
  do not fit. What each row did in the whole of a training is [a command of its own](attribution.md).
- **A stream of batches and a slow outer level:** `soba`, or `amigo`.
- **Not sure whether it is right?** `check_hypergradient` compares any of them with a reference on your own problem, and
  says in words what to change. [One of your own](own_estimator.md) works wherever these do, and is compared the same
  way:

```python
>>> import jax.numpy as jnp
>>> from bilevel.core import EvaluationPoint, EstimatorSettings, Mean, Problem, check_hypergradient
>>> def lower(outer, inner, batch):
...     return Mean(jnp.sum((batch["x"] @ inner - batch["y"]) ** 2) + jnp.exp(outer) * jnp.sum(inner**2), 1)
>>> def upper(outer, inner, batch):
...     return Mean(jnp.sum((batch["x"] @ inner - batch["y"]) ** 2), 1)
>>> train = {"x": jnp.array([[1.0, 0.5], [0.0, 2.0], [1.0, 1.0]]), "y": jnp.array([1.0, -1.0, 0.5])}
>>> trusted = {"x": jnp.array([[1.0, 0.0]]), "y": jnp.array([1.0])}
>>> untrained = EvaluationPoint(jnp.array(0.0), jnp.zeros(2), train, trusted)
>>> found = check_hypergradient(Problem(lower, upper), EstimatorSettings("conjugate_gradient"), untrained)
>>> found.verdict
'Right direction, wrong length: fine for ranking rows and where the outer rate is tuned.'
>>> found.advice
('Inner not converged (stationarity ..., costing ...): the implicit formula describes the optimum w*, not ...

```
"""

EXPLAINED = """
Costs are in gradients of one batch; a forward-mode pass (jvp) takes as many operations as three forward passes, or as
two where it shares one, a gradient three, or four where layers are rematerialised ([measured](costs.md)). *Lower steps*
are paid by all alike and left out. Memory is what comes on top of parameters, optimizer state and the tape of one
gradient.
"""

MEASURED = """
## Measured errors

Against a dense solve at the optimum of the lower level, in float64: the relative error of the outer gradient, and the
cosine of the angle to the exact one. *ridges*: 30 logarithms of ridge strengths of a logistic regression on
breast_cancer (standardised, ridge 0.1); *rows*: a logit a row of the same, with the ridge fixed; *digits*: a logit a
row of softmax regression on 200 digits; *quadratic*: 12 variables, eigenvalues from 1 to 20, or 8 with negative ones.
The lower level is solved by Newton's method first. One-step estimators are measured against the optimum too, which they
do not claim to describe: their length is that of one step, and their cosine tells how much of the direction it knows.
"""


def page() -> str:
    """The whole page."""
    overview = [
        [f"`{row.name}`", f"`{row.formula}`", row.when, row.cost, row.memory, row.assumes]
        for row in ESTIMATORS.values()
    ]
    errors = [_line(case) for name in ESTIMATORS for case in CASES if case.settings.name == name]
    sources = [f"- `{row.name}`: {row.references}" for row in ESTIMATORS.values() if row.references != "-"]
    return "\n".join(
        (
            INTRODUCTION,
            "## All of them\n",
            _table(("name", "computes", "take it when", "cost", "memory", "assumes"), overview),
            EXPLAINED,
            MEASURED,
            _table(("name", "settings", "problem", "relative error", "cosine", "test demands"), errors),
            "\n## Sources\n",
            *sources,
            "",
        )
    )


def _line(case: Case) -> list[str]:
    found = measured(case)
    demands = [
        *([f"error < {case.error:g}"] if case.error is not None else []),
        *([f"cosine > {case.cosine:g}"] if case.cosine is not None else []),
    ]
    return [
        f"`{case.settings.name}`",
        ", ".join(filter(None, (described(case.settings), _conditions(case)))),
        case.problem,
        f"below {EXACT:g}" if found.error < EXACT else f"{found.error:.1e}",
        f"{found.cosine:.3f}",
        ", ".join(demands),
    ]


def _conditions(case: Case) -> str:
    steps = f"{case.lower_steps} lower steps" if case.lower_steps > 1 else ""
    return ", ".join(filter(None, (steps, f"{case.settle} steps before" if case.settle else "")))


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
