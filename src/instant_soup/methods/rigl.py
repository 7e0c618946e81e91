"""RigL (Evci et al. 2020): sparse from the first step on, with a mask that moves.

The network is pruned to the target sparsity before it trains. Then, every few steps, a share of
each matrix's weights is exchanged: the smallest go, and as many pruned ones come in at zero, those
whose loss gradient is largest. The share falls to nothing by a cosine; then the mask stays. This is
GraNet's exchange without its gradual pruning.

Published is a random mask at the start, with Erdős–Rényi densities (`start: erdos_renyi`), on
random weights. Such a mask keeps little of a pre-trained network, so here the largest weights of
all matrices are the default.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again, one_of, setting
from instant_soup.methods.base import register
from instant_soup.methods.erdos_renyi import ErdosRenyi
from instant_soup.methods.moving import (
    Exchanging,
    Ramp,
    regrow_setting,
    score_setting,
    update_setting,
)

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class RigL(Exchanging):
    """Drop by magnitude and grow by gradient, at one sparsity."""

    name: ClassVar[str] = "rigl"
    title: ClassVar[str] = "RigL"
    order: ClassVar[float] = 61.5
    source: ClassVar[str] = "Evci et al. 2020, arXiv 1911.11134"
    style: ClassVar[tuple[str, str] | None] = ("#999933", r"$\ominus$")

    start: str = setting(
        "the first mask: magnitude (of all matrices) | erdos_renyi (random, as in the paper)",
        one_of("magnitude", "erdos_renyi"),
        default="magnitude",
    )
    score: str = score_setting()
    every: int = update_setting()
    regrow: float = regrow_setting("nothing", 0.3)
    regrow_until: float = again(Ramp, "end", default=0.75)

    def ranks_shards(self) -> bool:
        """Unless the first mask is drawn for whole matrices."""
        return self.start == "magnitude"

    def first_mask(self, run: "Run", sparsity: float) -> "Mask":
        """The mask at the start."""
        from instant_soup.sparsity import scores

        if self.start == "erdos_renyi":
            return ErdosRenyi().mask(run, sparsity)
        return scores.magnitude(run.weights, sparsity, run.shards)

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that exchanges weights."""
        settled = self.settled(run.total)
        first = self.first_mask(run, sparsity)
        return self.exchanger(first, run, sparsity, end=0, total=settled, least=0.0)
