"""Rules for the direction q of an implicit hypergradient, one a file."""

from bilevel.core.adjoint.identity import identity as identity
from bilevel.core.adjoint.optimizer_aware import optimizer_aware as optimizer_aware
