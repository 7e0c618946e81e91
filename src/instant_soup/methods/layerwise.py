"""Uniform magnitude: every matrix is pruned to the same sparsity by its own magnitudes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import AtStart, register

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class Layerwise(AtStart):
    """The largest |w| of each matrix stay; all matrices have the same density, up to a weight."""

    name: ClassVar[str] = "layerwise"
    title: ClassVar[str] = "Layer-wise magnitude"
    order: ClassVar[float] = 21
    style: ClassVar[tuple[str, str] | None] = ("#56B4E9", "<")
    looks_at: ClassVar[tuple[str, ...]] = ()

    def ranks_shards(self) -> bool:
        """Always."""
        return True

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The largest of each matrix by itself."""
        from instant_soup.sparsity import scores

        return scores.best_each(scores.magnitude_scores(run.weights), sparsity, run.shards)
