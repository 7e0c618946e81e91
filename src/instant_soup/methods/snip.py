"""SNIP (Lee et al. 2019): connection sensitivity |g ⊙ θ| of the training loss before training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.on_batches import OnBatches

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class SNIP(OnBatches):
    """The weights whose removal changes the loss of some batches most, to first order, stay."""

    name: ClassVar[str] = "snip"
    title: ClassVar[str] = "SNIP"
    order: ClassVar[float] = 50
    style: ClassVar[tuple[str, str] | None] = ("#CC79A7", "*")

    def scores(self, run: "Run") -> "Weights":
        """|g ⊙ θ|, g the mean gradient over the batches."""
        from instant_soup.sparsity.scores import snip_scores
        from instant_soup.training.gradients import mean_gradient

        return snip_scores(run.weights, mean_gradient(run, self.batches))
