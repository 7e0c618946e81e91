"""SNIP (Lee et al. 2019): connection sensitivity |g ⊙ θ| of the training loss before training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import MOST_STEPS, integer, setting
from instant_soup.methods.base import AtStart, register

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@dataclass(frozen=True, kw_only=True)
class OnBatches(AtStart):
    """A criterion that looks at gradients on some batches of the pre-trained network."""

    batches: int = setting(
        "batches that gradients are taken of",
        integer(1, MOST_STEPS),
        section="criteria",
        paper=8,
        quick=4,
    )

    def wants_batches(self) -> bool:
        """Gradients of some."""
        return True


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
        from instant_soup.training.gradients import mean_gradient

        gradient = mean_gradient(run, self.batches)
        return {name: (gradient[name] * w).abs().float() for name, w in run.weights.items()}
