"""An outer optimizer for each part of outer variables that are a dict, as those of a product are."""

from __future__ import annotations

from typing import Any

import jax
import optax

from bilevel.core.tree import PyTree


def by_part(**rules: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """One rule a part; the state is a dict by part, so that a step may move one part and leave the others' alone.

    It is very similar to `optax.multi_transform`, but distinct because a part that a step leaves out of its `updates`
    keeps its optimizer's state too.

    Args:
        **rules: by part name; parts without variables (uniform or given weights) need none.

    Raises:
        ValueError: at `init`, for parts without a rule or rules without a part.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from bilevel.weighting import by_part
        >>> rule = by_part(rows=optax.sgd(1.0), network=optax.adam(0.1))
        >>> sorted(rule.init({"rows": jnp.zeros(3), "network": jnp.zeros(2)}))
        ['network', 'rows']
    """

    def rule_of(name: str) -> optax.GradientTransformation:
        return rules.get(name, optax.identity())

    def init(params: PyTree) -> dict[str, PyTree]:
        if not isinstance(params, dict):
            raise ValueError("by_part: the outer variables are no dict by part, as those of a product are")
        without = [name for name, part in params.items() if name not in rules and jax.tree.leaves(part)]
        unknown = [name for name in rules if name not in params]
        if without or unknown:
            raise ValueError(
                f"by_part: parts without a rule: {', '.join(without) or 'none'}; rules without a part: "
                f"{', '.join(unknown) or 'none'}"
            )
        return {name: rule_of(name).init(part) for name, part in params.items()}

    def update(
        gradient: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, dict[str, PyTree]]:
        stepped = {
            name: optax.with_extra_args_support(rule_of(name)).update(
                part, state[name], None if params is None else params[name], **extra
            )
            for name, part in gradient.items()
        }
        return {name: step for name, (step, _) in stepped.items()}, {
            name: kept for name, (_, kept) in stepped.items()
        }

    return optax.GradientTransformationExtraArgs(init, update)
