"""LAMP (Lee et al. 2021): layer-adaptive scores, so that one ranking starves no matrix."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.budgets import lamp_mask
from instant_soup.methods.local_scores import ByScore

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class LAMP(ByScore):
    """A weight's square over the sum of its matrix's squares that are no smaller; the largest stay.

    The largest weight of a matrix has 1, so every matrix keeps something. Fisher scores can replace
    the squares, as both tell what a weight is worth.
    """

    name: ClassVar[str] = "lamp"
    title: ClassVar[str] = "LAMP"
    order: ClassVar[float] = 24
    source: ClassVar[str] = "Lee et al. 2021, arXiv 2010.07611"
    style: ClassVar[tuple[str, str] | None] = ("#56B4E9", r"$\Lambda$")

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The mask of exactly the sparsity."""
        return lamp_mask(run, self.scores(run), sparsity, squared=self.score != "magnitude")
