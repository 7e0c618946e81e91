"""Soft movement pruning (Sanh, Wolf & Rush 2020): scores above a threshold, and a penalty on them.

This is movement pruning (movement.py), but M = [σ(A) > τ], with at least 0.5 % of the weights in
each matrix. τ rises from 0 by the cubic schedule. So does λ, the weight of a penalty on the loss:
the mean over matrices of the mean σ(A). The scores decide how sparse each matrix is, and λ, τ and
the number of steps how sparse the network is. No setting gives a wanted sparsity.

So the mask is cut exactly at `end`: the largest σ(A) of all matrices stay. If λ has pruned more
than is wanted by then, weights come back with the values that they had.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import number, setting
from instant_soup.methods.base import register
from instant_soup.methods.moving import LearntScores, Ramp

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class SoftMovement(LearntScores, Ramp):
    """Movement pruning by a threshold; cut to the wanted sparsity in the end."""

    name: ClassVar[str] = "soft_movement"
    title: ClassVar[str] = "Soft movement pruning"
    order: ClassVar[float] = 60.2
    source: ClassVar[str] = "Sanh et al. 2020, arXiv 2005.07683"
    style: ClassVar[tuple[str, str] | None] = ("#AA4499", r"$\clubsuit$")

    threshold: float = setting(
        "τ at the end; σ of a score is 0.5 at the start",
        number(0, 1, low_too=False, high_too=False),
        default=0.1,
    )
    penalty: float = setting("λ at the end", number(0, float("inf")), default=400.0)

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that moves by learnt scores and a threshold."""
        from instant_soup.training.movement_pruner import SoftMovementPruner

        return self.learner(
            SoftMovementPruner,
            run,
            sparsity,
            scope="global",
            threshold=self.threshold,
            penalty=self.penalty,
        )
