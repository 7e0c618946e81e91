"""Sparse Model Soups (Zimmer, Spiegel & Pokutta 2024): the last phase trained several times, mixed.

After the last prune several copies of the network train on, from the same weights and under the
same mask, each with its own rate, weight decay and data order. The ticket is the mean of their
weights. What the mask prunes is zero in all of them, and stays zero. The paper does so after every
prune. Here it is done once, after the last one, on top of the masks of ISP+ or progressive pruning.

If each copy takes all the steps that are left, the row costs several last phases, and is to be
compared with LTH. If the copies share these steps, it costs one, as any other row.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import MOST_NETWORKS, integer, one_of, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, enough, register
from instant_soup.methods.draws import decay_range, rate_range
from instant_soup.methods.rounds import OnTheWay
from instant_soup.methods.soups import trained_apart, uniform_soup
from instant_soup.training.schedule import learning_rate, warmup_steps

if TYPE_CHECKING:
    from instant_soup.config.sections import Recipe
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.schedule import Steps

COPIES = 2000  # keeps the copies' draws apart from those of dense soups and of ISP's rounds


@register
@dataclass(frozen=True, kw_only=True)
class SparseSoup(OnTheWay):
    """Prune on the way; train the rest of the budget `copies` times; average."""

    name: ClassVar[str] = "sparse_soup"
    title: ClassVar[str] = "Sparse Model Soup"
    order: ClassVar[float] = 86
    source: ClassVar[str] = "Zimmer et al. 2024, arXiv 2306.16788"
    style: ClassVar[tuple[str, str] | None] = ("#B8860B", r"$\Pi$")
    finishes: ClassVar[bool] = True

    score: str = setting(
        "fisher (ISP+'s masks) | magnitude (progressive pruning's)",
        one_of("fisher", "magnitude"),
        default="fisher",
    )
    copies: int = setting(
        "networks that are trained after the last prune", integer(2, MOST_NETWORKS), default=3
    )
    last_phase: str = setting(
        "whole (each copy takes all steps that are left) | shared (they share them out)",
        one_of("whole", "shared"),
        default="whole",
    )
    learning_rate_range: list[float] = rate_range("a copy's", default=[0.5, 2.0])
    weight_decay_range: list[float] = decay_range("a copy's", default=[0.0, 0.1])

    @property
    def ranks_by(self) -> str:
        """The kind of scores that its masks are of."""
        return self.score

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask":
        """The network's own mask: by w² · v, or by |w|."""
        from instant_soup.sparsity import scores

        worth = scores.worth_of(self.score, run.weights, run.state.second_moments)
        return scores.best(worth, sparsity)

    def find(self, run: "Run", sparsity: float) -> None:
        """All rounds; then the copies and their mean. Nothing is left to train."""
        super().find(run, sparsity)
        last = self.last_step(run.state.step, run.total)
        ranges = self.learning_rate_range, self.weight_decay_range
        protocols = [run.draw_protocol(*ranges, 1.0, n, COPIES) for n in range(self.copies)]
        recipes = [
            going_on(protocol.applied_to(run.recipe), run.state.step, run.total, last)
            for protocol in protocols
        ]
        run.state.weights = uniform_soup(trained_apart(run, recipes, "copy", last))
        run.state.step = run.total
        run.moved("the mean of copies")

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check the rounds, and that each copy has a step.

        Raises:
            UserError: If one has not.
        """
        super().check_steps(sparsity, run)
        step, total = self.round_ends(sparsity, run)[-1], run.total
        if self.last_step(step, total) == step:
            raise UserError(
                f"sparse_soup.copies: {self.copies} cannot share the {total - step} steps that the "
                f"rounds leave of {total}; {enough(f'at most {total - step}')}"
            )

    def last_step(self, step: int, total: int) -> int:
        """The step up to which a copy is trained, if the rounds end at `step`."""
        return step + (total - step) // (self.copies if self.last_phase == "shared" else 1)

    pruner = Method.pruner  # none: the copies train the last phase several times


def going_on(recipe: "Recipe", step: int, total: int, last: int) -> "Recipe":
    """The recipe whose rate is at `step` what `recipe`'s is there, and falls to zero at `last`."""
    warmup = warmup_steps(recipe.warmup, total)
    rate = learning_rate(
        step, total, recipe.learning_rate, warmup, recipe.cycles, recipe.lowest_rate
    )
    return replace(recipe, learning_rate=rate * last / (last - step), warmup=0.0, cycles=1)
