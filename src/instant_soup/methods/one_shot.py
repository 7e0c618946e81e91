"""One-shot magnitude: the largest weights stay, a baseline of the paper."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import AtStart, register

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class OneShot(AtStart):
    """The magnitude mask of the pre-trained weights: no seed, no data."""

    name: ClassVar[str] = "one_shot"
    title: ClassVar[str] = "One-shot magnitude"
    order: ClassVar[float] = 20
    style: ClassVar[tuple[str, str] | None] = ("#0072B2", "^")
    main: ClassVar[bool] = True
    looks_at: ClassVar[tuple[str, ...]] = ()

    def ranks_shards(self) -> bool:
        """Always."""
        return True

    def scores(self, run: "Run") -> "Weights":
        """|w|."""
        from instant_soup.sparsity.scores import magnitude_scores

        return magnitude_scores(run.weights)
