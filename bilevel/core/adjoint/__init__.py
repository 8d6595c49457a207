"""Rules for the direction q of an implicit hypergradient, one a file."""

from bilevel.core.adjoint.conjugate_gradient import conjugate_gradient as conjugate_gradient
from bilevel.core.adjoint.dense import dense as dense
from bilevel.core.adjoint.identity import identity as identity
from bilevel.core.adjoint.neumann import neumann as neumann
from bilevel.core.adjoint.nystrom import nystrom as nystrom
from bilevel.core.adjoint.optimizer_aware import optimizer_aware as optimizer_aware
