"""BiP (Zhang et al. 2022): which mask is best, given that the weights then adapt to it.

The network is pruned to the target sparsity before it trains. Each weight θ has a score, |θ| at the
start. The largest scores of all matrices make the mask m. With z = m ⊙ θ, and the lower problem's
Hessian taken as γ I, the loss's gradient with respect to m is

    θ ⊙ ∇z − (1/γ) · m ⊙ ∇z ⊙ ∇z

where the second term is how θ would react to m. Scores take a step of SGD with momentum along it,
and m is their exact top-k. θ trains under m. A pruned weight keeps its value, with which it may
return.

The paper steps on m and on θ by turns, each with its own batch, in two or three passes an
iteration. Here a step does both with one pass. m's gradient is of a batch that θ has not been
trained on, as it is taken before θ's step. θ's step is under the mask that the batch was run with.
The reference code squares the gradient with respect to scores in the second term; ours is the
paper's term. Published scores are ranked by absolute value, ours as they are: m is a score that is
cut to 0 or 1, so one that has fallen below zero speaks against its weight.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import again, number, setting
from instant_soup.methods.base import register
from instant_soup.methods.moving import AtTarget, Ramp

if TYPE_CHECKING:
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run


@register
@dataclass(frozen=True, kw_only=True)
class BiP(AtTarget):
    """Bi-level pruning, at the target sparsity from the first step on."""

    name: ClassVar[str] = "bip"
    title: ClassVar[str] = "BiP"
    order: ClassVar[float] = 60.6
    source: ClassVar[str] = "Zhang et al. 2022, arXiv 2210.04092"
    style: ClassVar[tuple[str, str] | None] = ("#AA4499", r"$\ddagger$")

    implicit: float = setting(
        "1/γ, the weight of the weights' reaction", number(0, float("inf")), default=1e-4
    )
    end: float = again(Ramp, "end", default=0.8)
    every: int = again(Ramp, "every")

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The mask that moves by learnt scores."""
        from instant_soup.training.movement_pruner import BiPPruner

        return self.learner(BiPPruner, run, sparsity, scope="global", implicit=self.implicit)
