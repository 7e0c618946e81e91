"""ISP+: ISP's schedule, by the Fisher scores that the network's own optimiser holds.

The winner of studies/better_soups.py (docs/findings.md): no denoisers, no further pass.
"""

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
class IspPlus(Budgeted, OnTheWay):
    """Train t · (i + 1) steps, prune by w² · v to the round's sparsity, go on."""

    name: ClassVar[str] = "isp_plus"
    title: ClassVar[str] = "ISP+ (Fisher, no denoisers)"
    order: ClassVar[float] = 81
    style: ClassVar[tuple[str, str] | None] = ("#7A2E00", r"$\oplus$")
    main: ClassVar[bool] = True

    @property
    def ranks_by(self) -> str:
        """By w² · v."""
        return "fisher"

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask":
        """The network's own Fisher mask."""
        from instant_soup.sparsity import scores

        worth = scores.scores_of("fisher", run.weights, run.state.second_moments, run.shards)
        return self.best(run, worth, sparsity)
