"""Wanda (Sun et al. 2024): a weight's magnitude times that of what it multiplies.

The score of a weight is |w| ‖x‖, where ‖x‖ is the root mean square of its input feature over the
tokens of some batches of the pre-trained network. It needs no labels and no gradients.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import one_of, setting
from instant_soup.methods.base import register
from instant_soup.methods.on_batches import ByInputs

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class Wanda(ByInputs):
    """|w| times the root mean square of its input; compared within each row, or over all."""

    name: ClassVar[str] = "wanda"
    title: ClassVar[str] = "Wanda"
    order: ClassVar[float] = 53
    source: ClassVar[str] = "Sun et al. 2024, arXiv 2306.11695"
    style: ClassVar[tuple[str, str] | None] = ("#DDAA33", r"$\Omega$")

    scope: str = setting(
        "row (each output row has the same density, as published) | global",
        one_of("row", "global"),
        default="row",
    )

    def scores(self, run: "Run") -> "Weights":
        """|w| ‖x‖, shaped like the weights."""
        from instant_soup.training.activations import mean_squares

        inputs = mean_squares(run, self.calibration_batches)
        return {name: w.abs().float() * inputs[name].sqrt() for name, w in run.weights.items()}

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The largest of each row, or of all matrices together."""
        from instant_soup.sparsity import scores

        best = scores.best if self.scope == "global" else scores.best_of_rows
        return best(self.scores(run), sparsity)
