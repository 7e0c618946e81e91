"""Movement pruning (Sanh, Wolf & Rush 2020): keep the weights that training moves away from zero.

Every prunable matrix W has scores A of its shape, which start at zero. The network multiplies with
W' = M ⊙ W, where M keeps the largest scores. A learns through the mask as if it were not there
(straight-through): dL/dA = dL/dW' ⊙ W, for pruned weights too. So a weight that grows gains score,
and one that shrinks loses. A pruned weight may return with the value that it had. W's own gradient
is M ⊙ dL/dW'. The density falls by a cubic schedule; then the mask stays for the rest of the
budget.

A is trained by AdamW with a rate of its own, which falls linearly to zero. Unlike in the reference
code, A's gradients have no part in clipping, as AdamW makes its steps independent of their size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import one_of, setting
from instant_soup.methods.base import register
from instant_soup.methods.moving import LearntScores, Ramp

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Movement(LearntScores, Ramp):
    """Hard movement pruning, ranked in each matrix as in the paper, or over all of them."""

    name: ClassVar[str] = "movement"
    title: ClassVar[str] = "Movement pruning"
    order: ClassVar[float] = 60
    source: ClassVar[str] = "Sanh et al. 2020, arXiv 2005.07683"
    style: ClassVar[tuple[str, str] | None] = ("#AA4499", r"$\otimes$")

    scope: str = setting(
        "local (each matrix has the same density, as in the paper) | global",
        one_of("local", "global"),
        default="local",
    )

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that moves by learnt scores."""
        from instant_soup.training.movement_pruner import MovementPruner

        return self.learner(MovementPruner, run, sparsity, scope=self.scope)
