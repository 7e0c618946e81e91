"""A local score: what each weight of the pre-trained network is worth by itself."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from instant_soup.config.fields import one_of, setting
from instant_soup.methods.on_batches import OnBatches

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights


@dataclass(frozen=True, kw_only=True)
class ByScore(OnBatches):
    """A mask on the pre-trained network, by one of several local scores."""

    score: str = setting(
        "magnitude | fisher (w² · mean g²) | snip (|w · g|), g of criteria.batches",
        one_of("magnitude", "fisher", "snip"),
        default="magnitude",
    )

    def wants_batches(self) -> bool:
        """Where the score is of gradients."""
        return self.score != "magnitude"

    def ranks_shards(self) -> bool:
        """Where the score is of weights alone."""
        return self.score == "magnitude"

    def idle(self) -> dict[str, str]:
        """The batches, where there is no gradient."""
        own = {} if self.score != "magnitude" else {"batches": "score: fisher | snip"}
        return super().idle() | own

    def scores(self, run: "Run") -> "Weights":
        """A score for each weight, from zero up."""
        from instant_soup.sparsity.scores import fisher_scores, magnitude_scores, snip_scores
        from instant_soup.training.gradients import mean_gradient, mean_squared_gradient

        if self.score == "magnitude":
            return magnitude_scores(run.weights)
        if self.score == "fisher":
            return fisher_scores(run.weights, mean_squared_gradient(run, self.batches))
        return snip_scores(run.weights, mean_gradient(run, self.batches))
