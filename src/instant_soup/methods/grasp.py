"""GraSP (Wang et al. 2020): keep the weights that the gradient's flow needs most."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.on_batches import OnBatches

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class GraSP(OnBatches):
    """Score −θ ⊙ Hg, the change of the squared gradient norm on removal; the lowest stay.

    H is the loss's Hessian over the prunable weights and g its gradient. Both are means over some
    batches of the pre-trained network.
    """

    name: ClassVar[str] = "grasp"
    title: ClassVar[str] = "GraSP"
    order: ClassVar[float] = 51
    style: ClassVar[tuple[str, str] | None] = ("#882255", "p")

    def scores(self, run: "Run") -> "Weights":
        """θ ⊙ Hg: minus the score, as the largest stay."""
        from instant_soup.training.gradients import hessian_product, mean_gradient

        product = hessian_product(run, self.batches, mean_gradient(run, self.batches))
        return {name: (w * product[name]).float() for name, w in run.weights.items()}
