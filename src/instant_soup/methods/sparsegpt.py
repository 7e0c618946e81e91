"""SparseGPT (Frantar & Alistarh 2023): each matrix pruned so that its outputs change least.

A matrix's loss is made of the second moments of its inputs, over the tokens of some batches of the
pre-trained network. The sweep of sparsity/sparse_gpt.py chooses what goes, and moves the rest.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import BOOLEAN, one_of, setting
from instant_soup.methods.base import register
from instant_soup.methods.on_batches import ByInputs

if TYPE_CHECKING:
    import torch

    from instant_soup.sparsity.masks import Cut, Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@register
@dataclass(frozen=True, kw_only=True)
class SparseGPT(ByInputs):
    """Columns go from left to right, and later ones make up; by blocks of columns, or globally.

    Without the update the mask is the same, and the weights that stay are as they were.
    """

    name: ClassVar[str] = "sparsegpt"
    title: ClassVar[str] = "SparseGPT"
    order: ClassVar[float] = 54
    source: ClassVar[str] = "Frantar & Alistarh 2023, arXiv 2301.00774"
    style: ClassVar[tuple[str, str] | None] = ("#997700", r"$\Sigma$")

    update: bool = setting("whether weights that stay move", BOOLEAN, default=True)
    scope: str = setting(
        "block (each block of 128 columns has the same density, as published) | global",
        one_of("block", "global"),
        default="block",
    )

    def mask(self, run: "Run", sparsity: float) -> "Mask | Cut":
        """The mask, with the weights that stay where these move."""
        from instant_soup.sparsity.masks import Cut
        from instant_soup.sparsity.sparse_gpt import factor, sweep
        from instant_soup.training.activations import second_moments

        check_memory(run, at_once=self.scope == "global")
        moments = second_moments(run, self.calibration_batches)
        factors: Iterable = ((name, factor(moments.pop(name))) for name in run.weights)
        if self.scope == "global":
            all_of_them = dict(factors)
            choose = of_all(run.weights, all_of_them, sparsity)
            factors = all_of_them.items()
        else:
            choose = of_blocks(run.weights, sparsity)
        mask, weights = {}, {}
        for name, upper in factors:  # of blocks, one matrix's at a time
            mask[name], moved = sweep(run.weights[name], upper, partial(choose, name))
            weights[name] = moved.to(run.weights[name].dtype)
        return Cut(mask, weights) if self.update else mask


# Name, number of a block of columns, what its removals cost → what stays.
Choice = Callable[[str, int, "torch.Tensor"], "torch.Tensor"]


def of_blocks(weights: "Weights", sparsity: float) -> Choice:
    """In each block of columns the same share stays: what costs most on the weights by then."""
    from instant_soup.sparsity import masks
    from instant_soup.sparsity.sparse_gpt import WIDTH

    wanted = {
        (name, i): (1 - sparsity) * columns.numel()
        for name, w in weights.items()
        for i, columns in enumerate(w.split(WIDTH, dim=1))
    }
    kept = masks.share_out(wanted, masks.keep_count(weights, sparsity))

    def choose(name: str, i: int, costs: "torch.Tensor") -> "torch.Tensor":
        return masks.largest(costs.flatten(), kept[name, i]).view(costs.shape)

    return choose


def of_all(weights: "Weights", factors: "Weights", sparsity: float) -> Choice:
    """Of all matrices together that stays which costs most on the weights as they came."""
    from instant_soup.sparsity import scores
    from instant_soup.sparsity.sparse_gpt import WIDTH

    costs = {
        name: (w.double() / factors[name].diagonal()).square().float()
        for name, w in weights.items()
    }
    mask = scores.best(costs, sparsity)

    def choose(name: str, i: int, costs: "torch.Tensor") -> "torch.Tensor":
        return mask[name].split(WIDTH, dim=1)[i]

    return choose


def check_memory(run: "Run", at_once: bool) -> None:
    """Check that the second moments of all inputs, and their factors at once, fit into memory.

    Raises:
        UserError: If they do not.
    """
    from instant_soup.models.memory import check_free

    widths = [w.shape[-1] for w in run.weights.values()]
    each = 8 if at_once else 4
    wanted = each * sum(n**2 for n in widths) + 32 * max(widths) ** 2  # and while one is factored
    told = (
        f"method: sparsegpt takes {wanted:,} bytes for the second moments of the inputs of "
        f"{len(widths)} matrices"
    )
    check_free(told, wanted, "wanda, which takes none", run.device)
