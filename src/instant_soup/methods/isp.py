"""Instant Soup Pruning (Jaiswal et al., ICML 2023): rounds whose masks are soups of weak masks.

Algorithm 1 is `OnTheWay.find` (rounds.py). Algorithm 2, denoised pruning, is here: a weak mask of
each denoiser, their soup, its adjustment. The pipeline has a stage for each of them; the library
calls `find_mask`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from instant_soup.config.fields import (
    BOOLEAN,
    MOST_NETWORKS,
    MOST_STEPS,
    ByFamily,
    integer,
    number,
    one_of,
    setting,
)
from instant_soup.methods.base import register
from instant_soup.methods.draws import decay_range, rate_range
from instant_soup.methods.rounds import OnTheWay

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.sparsity.ranking import Scores
    from instant_soup.training.protocols import Protocol
    from instant_soup.training.run import Run
    from instant_soup.training.state import State


@register
@dataclass(frozen=True, kw_only=True)
class ISP(OnTheWay):
    """Each round: train, look ahead with N denoisers, prune to the soup of their masks."""

    name: ClassVar[str] = "isp"
    title: ClassVar[str] = "ISP"
    order: ClassVar[float] = 80
    style: ClassVar[tuple[str, str] | None] = ("#D55E00", "o")
    main: ClassVar[bool] = True

    look_ahead: int = setting(
        "C: steps a denoiser trains",
        integer(1, MOST_STEPS),
        paper=ByFamily(30, 50),
        quick=ByFamily(10, 10, 5),
        library=10,
    )
    denoisers: int = setting(
        "N", integer(0, MOST_NETWORKS), paper=ByFamily(4, 5), quick=3, library=3
    )
    subset: float = setting(
        "share of the training rows a denoiser sees",
        number(0, 1, low_too=False),
        default=0.1,
        library=1.0,
    )
    learning_rate_range: list[float] = rate_range(
        "a denoiser's", default=[0.5, 5.0], drawn="as `draws` says"
    )
    draws: str = setting(
        "log_uniform | uniform: how that factor is drawn",
        one_of("log_uniform", "uniform"),
        default="log_uniform",
    )
    weight_decay_range: list[float] = decay_range(
        "a denoiser's", default=ByFamily([0.0, 0.1], [0.0, 0.2])
    )
    combine: str = setting(
        "union | intersection | vote", one_of("union", "intersection", "vote"), default="union"
    )
    adjust: str = setting(
        "every_round | last_round: when the soup is pruned to the round's sparsity",
        one_of("every_round", "last_round"),
        default="every_round",
    )
    own_mask: bool = setting(
        "true: the network's own magnitude mask joins the weak masks", BOOLEAN, default=False
    )
    score: str = setting(
        "magnitude | fisher: what weak masks and the adjustment rank weights by",
        one_of("magnitude", "fisher"),
        default="magnitude",
    )

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask":
        """Algorithm 2: the soup of the denoisers' weak masks, adjusted."""
        weak_masks = run.side_by_side(self.denoisers, lambda n: self.weak_mask(run, i, n, sparsity))
        ingredients = self.ingredients(run.state, run.mask, weak_masks, sparsity)
        adjust = self.adjusts or sparsity == run.target
        return self.soup(run.state, run.mask, ingredients, sparsity, adjust)

    @property
    def adjusts(self) -> bool:
        """Whether the soup is pruned to the round's sparsity in every round, not just the last."""
        return self.adjust == "every_round"

    def wants_batches(self) -> bool:
        """The denoisers train beside the run."""
        return self.denoisers > 0

    @property
    def ranks_by(self) -> str:
        """As `score` says."""
        return self.score

    def protocol(self, run: "Run", i: int, n: int) -> "Protocol":
        """Denoiser n's training protocol in round i, and its data subset."""
        ranges = self.learning_rate_range, self.weight_decay_range
        uniform = self.draws == "uniform"
        return run.draw_protocol(*ranges, self.subset, i, n, uniform=uniform)

    def weak_mask(self, run: "Run", i: int, n: int, sparsity: float) -> "Mask":
        """Denoiser n's mask (Algorithm 2, lines 3–6): look ahead C steps on a copy, then rank."""
        from instant_soup.sparsity import scores

        protocol = self.protocol(run, i, n)
        copy = run.look_ahead(protocol, self.look_ahead, f"look-ahead {i}/{n}")
        return scores.best(self.worth(copy, run.mask), sparsity)

    def ingredients(
        self, state: "State", before: "Mask", weak_masks: list["Mask"], sparsity: float
    ) -> list["Mask"]:
        """What the soup is made of: the weak masks, and the network's own where it is asked for."""
        if weak_masks and not self.own_mask:
            return weak_masks
        return [*weak_masks, self.own(state, before, sparsity)]

    def own(self, state: "State", before: "Mask", sparsity: float) -> "Mask":
        """The mask of the network itself, without any denoiser."""
        from instant_soup.sparsity import scores

        return scores.best(self.worth(state, before), sparsity)

    def soup(
        self,
        state: "State",
        before: "Mask",
        ingredients: list["Mask"],
        sparsity: float,
        adjust: bool = True,
    ) -> "Mask":
        """Combine masks, then prune to exactly the sparsity (Algorithm 2's last lines).

        The union keeps a weight that any denoiser wants to keep. These are too many, so the network
        is pruned within the union by its own magnitudes.
        """
        from instant_soup.sparsity import mask_soup, masks

        standing = mask_soup.combine(ingredients, self.combine)
        if not adjust:
            return {name: s > 0 for name, s in standing.items()}
        k = masks.number_kept(masks.count(before)[1], sparsity)
        return mask_soup.adjust(standing, self.worth(state, before), k)

    def worth(self, state: "State", mask: "Mask") -> "Scores":
        """What each prunable weight of a network is worth, computed as a ranking needs it."""
        from instant_soup.sparsity import scores

        weights = {name: state.weights[name] for name in mask}
        return scores.worth_of(self.score, weights, state.second_moments)

    def some(self, *names: str) -> dict[str, Any]:
        """Some of the settings, as a stage's file holds those that it depends on."""
        return {name: getattr(self, name) for name in names}
