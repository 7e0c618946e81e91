"""MULTIFLOW (Farina et al. 2024): the flow through a weight, within budgets set by magnitude.

The score of a weight is oᵢ |wᵢⱼ| nⱼ. With aⱼ the root mean square of its input feature, oᵢ is the
mean of |w| a over the weight's row and nⱼ that over its column: how much goes through the two nodes
that it joins. A matrix keeps as many weights as magnitude would leave of it, ranked within each
stack of blocks (vision, text, fusion) by itself.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.methods.base import register
from instant_soup.methods.on_batches import ByInputs

if TYPE_CHECKING:
    import torch

    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class Multiflow(ByInputs):
    """The weights between strong nodes; as many of each matrix as magnitude would leave."""

    name: ClassVar[str] = "multiflow"
    title: ClassVar[str] = "MULTIFLOW"
    order: ClassVar[float] = 55
    source: ClassVar[str] = "Farina et al. 2024, arXiv 2404.05621"
    style: ClassVar[tuple[str, str] | None] = ("#225522", r"$\Psi$")

    def scores(self, run: "Run") -> "Weights":
        """oᵢ |wᵢⱼ| nⱼ, shaped like the weights."""
        from instant_soup.training.activations import mean_squares

        inputs = mean_squares(run, self.calibration_batches)
        return {name: flow(w, inputs[name].sqrt()) for name, w in run.weights.items()}

    def mask(self, run: "Run", sparsity: float) -> "Mask":
        """The largest of each matrix, within its budget."""
        from instant_soup.sparsity import masks

        return masks.keep_largest_each(self.scores(run), by_magnitude(run.weights, sparsity))


def flow(weight: "torch.Tensor", norms: "torch.Tensor") -> "torch.Tensor":
    """The scores of a matrix (outputs × inputs) by the norms of its inputs."""
    sizes = weight.abs().float()
    through = sizes * norms
    return through.mean(dim=1, keepdim=True) * sizes * through.mean(dim=0)


def by_magnitude(weights: "Weights", sparsity: float) -> dict[str, int]:
    """How many weights of each matrix stay when magnitude ranks each stack of blocks by itself."""
    from instant_soup.sparsity import masks, scores
    from instant_soup.sparsity.names import stack_of

    stacks: dict[str, Weights] = {}
    for name, size in scores.magnitude_scores(weights).items():
        stacks.setdefault(stack_of(name), {})[name] = size
    wanted = {
        stack: (1 - sparsity) * sum(s.numel() for s in sizes.values())
        for stack, sizes in stacks.items()
    }
    shares = masks.share_out(wanted, masks.keep_count(weights, sparsity))
    kept: dict[str, int] = {}
    for stack, sizes in stacks.items():
        mask = masks.keep_largest(sizes, shares[stack])
        kept |= masks.count_each(mask)
    return kept
