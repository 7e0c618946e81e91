"""Global magnitude with a guard: no matrix falls below a minimum density."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import number, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import AtStart, register

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class MinDensity(AtStart):
    """Each matrix keeps its largest weights up to the minimum; a global ranking fills the rest.

    One global ranking alone can leave a matrix almost empty, and then nothing passes through it.
    """

    name: ClassVar[str] = "min_density"
    title: ClassVar[str] = "Magnitude, minimum density"
    order: ClassVar[float] = 22
    style: ClassVar[tuple[str, str] | None] = ("#56B4E9", ">")
    looks_at: ClassVar[tuple[str, ...]] = ()

    min_density: float = setting(
        "min_density: of every matrix",
        number(0, 1, high_too=False),
        section="criteria",
        default=0.05,
    )

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that the minimum of all matrices is not more than what may stay.

        Raises:
            UserError: If it is.
        """
        if self.min_density >= 1 - sparsity - 1e-9:
            raise UserError(
                f"criteria.min_density: {self.min_density} leaves no room at sparsity {sparsity}; "
                f"allowed: less than {1 - sparsity:.3g}"
            )

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The mask of exactly this sparsity.

        Raises:
            UserError: If the minimum of all matrices is more than what may stay.
        """
        from instant_soup.sparsity import masks
        from instant_soup.sparsity.scores import magnitude_scores

        scores, least = magnitude_scores(run.weights), self.min_density
        k = masks.keep_count(scores, sparsity)
        # Rounded, as 0.07 · 100 is 7.000000000000001 in floats.
        guarded = {name: math.ceil(round(least * s.numel(), 6)) for name, s in scores.items()}
        if sum(guarded.values()) > k:
            raise UserError(
                f"criteria.min_density: {least} of every matrix is more than a sparsity of "
                f"{sparsity} leaves; allowed: less than {1 - sparsity:.3g}"
            )
        return masks.keep_largest(scores, k, priority=masks.keep_largest_each(scores, guarded))
