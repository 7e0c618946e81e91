"""CAP (Kuznedelev et al. 2023): oBERT's blocks, pruned exactly, one weight after the other.

oBERT scores a weight as if it went alone. Here the weights of a block go one by one, cheapest
first, and after each the rest makes up for all that have gone. A weight's score is what the block
has cost by then. The weights that stay become those that make the block's loss least.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again, one_of, setting
from instant_soup.methods.base import register
from instant_soup.methods.obert import OBERT

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class CAP(OBERT):
    """Rounds by the exact sequence of removals in each Fisher block."""

    name: ClassVar[str] = "cap"
    title: ClassVar[str] = "CAP (exact oBERT)"
    order: ClassVar[float] = 85
    source: ClassVar[str] = "Kuznedelev et al. 2023, arXiv 2210.09223"
    style: ClassVar[tuple[str, str] | None] = ("#AA3311", r"$\boxtimes$")

    block: int = again(OBERT, "block", paper=192)
    gradient_batches: int = again(OBERT, "gradient_batches", paper=4096)
    update: str = setting(
        "joint (the exact one) | none: how the rest of a block moves",
        one_of("joint", "none"),
        default="joint",
    )

    def worth(self, fisher: "Weights", run: "Run") -> "Weights":
        """What a block's removals cost up to each weight."""
        from instant_soup.sparsity import surgeon

        return surgeon.sequence_scores(fisher, run.weights, run.mask, self.damping)
