"""Pruning on the way by magnitude: ISP's schedule without denoisers, a baseline of the paper."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.budgets import Budgeted
from instant_soup.methods.rounds import OnTheWay

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Progressive(Budgeted, OnTheWay):
    """Train t · (i + 1) steps, prune by magnitude to the round's sparsity, go on."""

    name: ClassVar[str] = "progressive"
    title: ClassVar[str] = "Progressive magnitude"
    order: ClassVar[float] = 30
    style: ClassVar[tuple[str, str] | None] = ("#E69F00", "P")

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask":
        """The network's own magnitude mask."""
        from instant_soup.sparsity.scores import magnitude_scores

        return self.best(run, magnitude_scores(run.weights), sparsity, squared=False)
