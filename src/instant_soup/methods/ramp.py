"""Masks that move while the density falls by a cubic schedule: when that begins and ends."""

from dataclasses import dataclass

from instant_soup.config.fields import MOST_STEPS, integer, number, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Throughout


@dataclass(frozen=True, kw_only=True)
class Ramp(Throughout):
    """The density falls from 1 at `begin` to its last value at `end` (Zhu & Gupta 2017).

    density(t) = d + (1 − d)(1 − (t − begin) / (end − begin))³, d = 1 − sparsity. From `end` on the
    mask stays.
    """

    begin: float = setting("share of T after which the density falls", number(0, 1), default=0.1)
    end: float = setting(
        "share of T after which the mask stays", number(0, 0.8, low_too=False), default=0.7
    )
    every: int = setting("steps between two masks", integer(1, MOST_STEPS), paper=1, quick=5)

    def check(self, sparsity: float, epochs: float) -> None:
        """UserError where the density has no time to fall."""
        if self.begin >= self.end:
            raise UserError(
                f"{self.name}.begin: {self.begin} is not before {self.name}.end {self.end}; "
                f"allowed: less than {self.end}"
            )

    def ranks_by_gradients(self) -> bool:
        """Its methods learn from gradients what weights are worth."""
        return True

    def settled(self, total: int) -> int:
        """The step from which the mask stays."""
        return max(1, round(self.end * total))
