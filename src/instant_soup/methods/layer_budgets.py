"""Layer budgets before training: first how much each matrix keeps, then which weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again
from instant_soup.methods.base import register
from instant_soup.methods.budgets import Budgeted
from instant_soup.methods.local_scores import ByScore

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class LayerBudgets(Budgeted, ByScore):
    """A local score within budgets, by default those of least distortion of the output."""

    name: ClassVar[str] = "layer_budgets"
    title: ClassVar[str] = "Layer budgets"
    order: ClassVar[float] = 25
    source: ClassVar[str] = "Xu et al. 2023; Sung et al. 2024; Yin et al. 2024"
    style: ClassVar[tuple[str, str] | None] = ("#56B4E9", r"$\Theta$")

    budget: str = again(Budgeted, "budget", default="rate_distortion")

    def ranks_shards(self) -> bool:
        """Where neither the budget nor the score takes batches."""
        return Budgeted.ranks_shards(self) and ByScore.ranks_shards(self)

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The largest scores within each matrix's budget."""
        squared = self.score != "magnitude"
        return self.best(run, self.scores(run), sparsity, squared=squared)
