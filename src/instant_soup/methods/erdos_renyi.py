"""Random with Erdős–Rényi-kernel densities (Mocanu et al. 2018; Evci et al. 2020)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import AtStart, register
from instant_soup.methods.random import random_scores

if TYPE_CHECKING:
    import torch

    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class ErdosRenyi(AtStart):
    """A random mask whose small matrices are denser; drawn from the run's seed."""

    name: ClassVar[str] = "erdos_renyi"
    title: ClassVar[str] = "Random, Erdős–Rényi"
    order: ClassVar[float] = 11
    style: ClassVar[tuple[str, str] | None] = ("#8C8C8C", "1")
    looks_at: ClassVar[tuple[str, ...]] = ("seed",)

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """A random mask of the densities below."""
        from instant_soup.sparsity import masks

        wanted = densities({name: w.shape for name, w in run.weights.items()}, sparsity)
        kept = masks.share_out(
            {name: wanted[name] * w.numel() for name, w in run.weights.items()},
            masks.keep_count(run.weights, sparsity),
        )
        return masks.keep_largest_each(random_scores(run.weights, run.seed), kept)


def densities(shapes: Mapping[str, "torch.Size"], sparsity: float) -> dict[str, float]:
    """Density of each matrix: proportional to (inputs + outputs) / (inputs · outputs), at most 1.

    Small matrices are denser. If the common factor would take one above 1, it stays dense, and the
    factor is solved again for the rest.

    Args:
        shapes: Name → shape of the weight.
        sparsity: Share of all weights to prune.

    Returns:
        Name → density.
    """
    from instant_soup.sparsity import masks

    sizes = {name: shape.numel() for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    budget = masks.number_kept(sum(sizes.values()), sparsity)
    dense: set[str] = set()
    while True:
        room = budget - sum(sizes[name] for name in dense)
        wanted = sum(raw[name] * size for name, size in sizes.items() if name not in dense)
        factor = room / wanted if wanted else 0.0
        over = {name for name in raw if name not in dense and factor * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else factor * raw[name] for name in raw}
        dense |= over
