"""GraSP (Wang et al. 2020): keep the weights that the gradient's flow needs most."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.on_batches import OnBatches

if TYPE_CHECKING:
    import torch

    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

VECTORS = 24  # bytes for a prunable weight: network, its copy, and four vectors in fp32
AT_ONCE = 2**31  # bytes that second derivatives may take at a time


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

    def check_size(self, weights: int) -> None:
        """Check that so many prunable weights' vectors fit into memory.

        Raises:
            UserError: If they do not.
        """
        self._check(weights, None)

    def scores(self, run: "Run") -> "Weights":
        """θ ⊙ Hg: minus the score, as the largest stay."""
        from instant_soup.sparsity.masks import count
        from instant_soup.sparsity.scores import check_some
        from instant_soup.training.gradients import hessian_product, mean_gradient

        self._check(count(run.mask)[1], run.device)
        product = hessian_product(run, self.batches, mean_gradient(run, self.batches), AT_ONCE)
        check_some(product.values())
        return {name: (w * product[name]).float() for name, w in run.weights.items()}

    def _check(self, weights: int, where: "torch.device | None") -> None:
        from instant_soup.models.memory import check_free

        wanted = VECTORS * weights
        told = f"method: {self.name} takes {wanted:,} bytes for {weights:,} prunable weights"
        allowed = "a smaller model, or a method without second derivatives, as snip"
        check_free(told, wanted, allowed, where)
