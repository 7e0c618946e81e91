"""GraSP by absolute value: how much a weight's removal changes the gradient's flow."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.grasp import GraSP

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class GraSPAbsolute(GraSP):
    """Score |θ ⊙ Hg|; the largest stay.

    The signed score ranks half of all weights below a zero one, large ones among them. On a
    pre-trained network that prunes what matters most.
    """

    name: ClassVar[str] = "grasp_absolute"
    title: ClassVar[str] = "GraSP, absolute"
    order: ClassVar[float] = 52
    source: ClassVar[str] = "Wang et al. 2020, arXiv 2002.07376; without its sign"
    style: ClassVar[tuple[str, str] | None] = ("#882255", r"$\parallel$")

    def scores(self, run: "Run") -> "Weights":
        """|θ ⊙ Hg|."""
        return {name: score.abs() for name, score in super().scores(run).items()}
