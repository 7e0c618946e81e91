"""GraNet (Liu et al. 2021): gradual magnitude pruning with regeneration.

Every few steps (a) the smallest weights of all matrices go, down to a density that falls by a cubic
schedule, and (b) in each matrix a share of the weights is exchanged: the smallest go, and as many
pruned ones come back at zero, those whose loss gradient is largest. The share falls by a cosine.
Regeneration goes on after (a) has ended, and stops for the last part of the budget. A weight that
is dropped and chosen again at once never left: it keeps its value.

"Smallest" is by magnitude, as published, or by Fisher scores w² · v (`score: fisher`). Then a
weight that comes back starts with v = g² of the batch that chose it, not with zero. (This g is as
it was before clipping. The others' v at step t of AdamW is still short of its mean by 1 − β₂^t, and
this one is not: in a short training what comes back stands above them, and stays.)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import register
from instant_soup.methods.moving import (
    LATEST,
    Exchanging,
    Ramp,
    regrow_setting,
    score_setting,
    step_at,
    update_setting,
)

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class GraNet(Exchanging):
    """Prune by magnitude, regenerate by gradient."""

    name: ClassVar[str] = "granet"
    title: ClassVar[str] = "GraNet"
    order: ClassVar[float] = 61
    source: ClassVar[str] = "Liu et al. 2021, arXiv 2106.10404"
    style: ClassVar[tuple[str, str] | None] = ("#999933", r"$\odot$")

    every: int = update_setting()
    score: str = score_setting()
    end: float = setting(
        "share of T after which the target sparsity is reached", LATEST, default=0.5
    )
    regrow_until: float = again(Ramp, "end", default=0.75)
    regrow: float = regrow_setting("a hundredth", 0.5)

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that the mask is sparse before it stays.

        Raises:
            UserError: If it is not.
        """
        if self.regrow_until < self.end:
            raise UserError(
                f"granet.regrow_until: {self.regrow_until} is before granet.end {self.end}; "
                f"allowed: at least {self.end}"
            )

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that loses and regains weights."""
        end = step_at(self.end, run.total)
        return self.exchanger(run.mask, run, sparsity, end=end, total=run.total)
