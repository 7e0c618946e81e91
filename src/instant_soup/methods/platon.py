"""PLATON (Zhang et al. 2022): keep the weights that the loss is sensitive to, or may be.

The sensitivity of a weight is I = |w · g|: how much the loss would change, to first order, without
it. One batch's sensitivity is noise. So means Î over windows of `every` steps are smoothed, and so
is their distance from the smoothed value:

    Ī ← β₁ Ī + (1 − β₁) Î        U ← β₂ U + (1 − β₂) |Î − Ī|        score = Ī · U

At the end of each window the weights with the largest scores of all matrices stay. The density
falls by a cubic schedule. With `zeros: leaky`, as published, the others are set to zero at that
moment, but gradients and moments go on. They grow again, and may survive the next cut. So the
network is sparse in the one step after each cut, and dense in the others (and is counted so). With
`zeros: hard` a pruned weight never returns; that tells the score's effect from the regrowth's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import MOST_STEPS, integer, number, one_of, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import register
from instant_soup.methods.moving import Ramp, check_moves

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Platon(Ramp):
    """Sensitivity times its uncertainty; pruned weights leak back in between, or do not."""

    name: ClassVar[str] = "platon"
    title: ClassVar[str] = "PLATON"
    order: ClassVar[float] = 62
    source: ClassVar[str] = "Zhang et al. 2022, arXiv 2206.12562"
    style: ClassVar[tuple[str, str] | None] = ("#DDAA33", r"$\oslash$")

    zeros: str = setting(
        "leaky (pruned weights grow again between two cuts, as in the paper) | hard",
        one_of("leaky", "hard"),
        default="leaky",
    )
    every: int = setting(
        "steps of a window, at whose end a cut is", integer(1, MOST_STEPS), paper=10, quick=5
    )
    sensitivity_decay: float = setting(
        "β₁, of the smoothed sensitivity", number(0, 1, high_too=False), default=0.85
    )
    uncertainty_decay: float = setting(
        "β₂, of the smoothed uncertainty; 1: the score is the sensitivity alone",
        number(0, 1),
        default=0.95,
    )

    def check(self, sparsity: float, epochs: float) -> None:
        """Check the ramp, and that there is an uncertainty to multiply with.

        Raises:
            UserError: If there is none.
        """
        super().check(sparsity, epochs)
        if self.sensitivity_decay == 0 and self.uncertainty_decay < 1:
            raise UserError(
                "platon.sensitivity_decay: 0 smooths nothing, so all uncertainties, and with them "
                "all scores, are zero; allowed: more, or platon.uncertainty_decay 1"
            )

    def check_every(self, total: int) -> None:
        """UserError if no window ends before the mask stays."""
        check_moves(self, self.every, self.settled(total))

    def ranks_shards(self) -> bool:
        """Always."""
        return True

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that moves by smoothed sensitivities."""
        from instant_soup.training.platon_pruner import PlatonPruner

        return PlatonPruner(
            run.mask,
            sparsity,
            begin=self.begins(run.total),
            settled=self.settled(run.total),
            every=self.every,
            sensitivity_decay=self.sensitivity_decay,
            uncertainty_decay=self.uncertainty_decay,
            hard=self.zeros == "hard",
        )
