"""Random: a uniformly random mask over all prunable weights, a baseline of the paper."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import AtStart, register

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class Random(AtStart):
    """Every mask of this sparsity is as likely as any other; drawn from the run's seed."""

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    order: ClassVar[float] = 10
    style: ClassVar[tuple[str, str] | None] = ("#8C8C8C", "v")
    looks_at: ClassVar[tuple[str, ...]] = ("seed",)

    def scores(self, run: "Run") -> "Weights":
        """Uniform random numbers."""
        return random_scores(run.weights, run.seed)


def random_scores(weights: "Weights", seed: int) -> "Weights":
    """A uniform random number for each weight; doubles, as floats of 24 bits would tie often."""
    import torch

    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(w.shape, dtype=torch.float64, generator=draws)
        for name, w in weights.items()
    }
