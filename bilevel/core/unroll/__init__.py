"""Differentiating through training: K optimizer steps of any optax chain, in reverse, forward and mixed mode."""

from bilevel.core.unroll.unroll import Mode as Mode
from bilevel.core.unroll.unroll import unroll as unroll
