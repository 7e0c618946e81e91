"""Lottery Jackpots (Zhang et al. 2021): the mask of frozen weights is exchanged bit by bit.

The network is pruned by magnitude before it trains, and the prunable matrices never change. Each
weight has a score: 1 if it is kept, 0.99 if it is pruned. Scores learn by SGD with momentum (0.9)
and decay (5e-4) through the mask as if it were not there, as in movement pruning. In each matrix as
many weights stay as at the start, those with the largest scores. What is not prunable trains as in
every row.

The paper bounds the number of exchanges in a step. Its code does not, and neither does this.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again
from instant_soup.methods.base import register
from instant_soup.methods.moving import AtTarget, Ramp

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class LotteryJackpots(AtTarget):
    """A learnt mask of frozen weights, of magnitude's densities."""

    name: ClassVar[str] = "lottery_jackpots"
    title: ClassVar[str] = "Lottery Jackpots"
    order: ClassVar[float] = 60.5
    source: ClassVar[str] = "Zhang et al. 2021, arXiv 2104.08700"
    style: ClassVar[tuple[str, str] | None] = ("#AA4499", r"$\spadesuit$")
    finishes: ClassVar[bool] = True

    end: float = again(Ramp, "end", default=0.8)
    every: int = again(Ramp, "every")

    def needed_until(self, total: int) -> int:
        """The end: the weights are frozen all the time."""
        return total

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that moves by learnt scores, on weights that do not."""
        from instant_soup.training.movement_pruner import JackpotPruner

        return self.learner(JackpotPruner, run, sparsity, scope="magnitude", frozen=True)
