"""Dense soups: weights of several networks mixed into one (paper, Algorithm 3 and table 6).

All networks start from the same pre-trained weights, so mixtures of them work. Scores are of
validation data; higher is better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import (
    MOST_NETWORKS,
    MOST_STEPS,
    integer,
    number,
    setting,
    shares,
    span,
)
from instant_soup.methods.base import Method, register
from instant_soup.methods.draws import decay_range, rate_range

if TYPE_CHECKING:
    from instant_soup.config.sections import Recipe
    from instant_soup.training.protocols import Protocol
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

    Score = Callable[[Weights], float]


@dataclass(frozen=True, kw_only=True)
class Soup(Method):
    """A dense network mixed of several, each trained under a protocol of its own."""

    dense: ClassVar[bool] = True
    validates: ClassVar[bool] = True
    kind: ClassVar[str]  # of its networks: keeps their draws, and those of ISP's rounds, apart

    def protocol(self, run: "Run", n: int, subset: float) -> "Protocol":
        """Network n's protocol: rate, weight decay, a share of the rows, and data order."""
        key = (n, 1000 + len(self.kind))
        return run.draw_protocol(self.learning_rate_range, self.weight_decay_range, subset, *key)

    learning_rate_range: list[float] = rate_range(
        "a network's", default=[0.5, 2.0], section="model_soup"
    )
    weight_decay_range: list[float] = decay_range(
        "a network's", default=[0.0, 0.1], section="model_soup"
    )


@dataclass(frozen=True, kw_only=True)
class OfNetworks(Soup):
    """A soup of networks that are fine-tuned in full (Wortsman et al. 2022)."""

    kind: ClassVar[str] = "networks"

    networks: int = setting(
        "uniform_soup, greedy_soup: how many are fine-tuned",
        integer(1, MOST_NETWORKS),
        section="model_soup",
        paper=8,
        quick=3,
    )

    def mix(self, run: "Run", networks: list["Weights"]) -> "Weights":
        """One network of several."""
        raise TypeError(f"{type(self).__name__} does not mix")

    def more_trainings(self, sparsity: float) -> float:
        """All networks but one, which stands for the row's own."""
        return self.networks - 1

    def find(self, run: "Run", sparsity: float) -> None:
        """Fine-tune the networks, mix them. Nothing is left to train."""
        protocols = [self.protocol(run, n, 1.0) for n in range(self.networks)]
        recipes = [protocol.applied_to(run.recipe) for protocol in protocols]
        run.state.weights = self.mix(run, trained_apart(run, recipes, "network", run.total))
        run.state.step = run.total
        run.found["validation"] = run.score(run.state.weights)


@register
@dataclass(frozen=True, kw_only=True)
class UniformSoup(OfNetworks):
    """The mean of all."""

    name: ClassVar[str] = "uniform_soup"
    title: ClassVar[str] = "Uniform soup (dense)"
    order: ClassVar[float] = 95
    style: ClassVar[tuple[str, str] | None] = ("#332288", "|")

    def mix(self, run: "Run", networks: list["Weights"]) -> "Weights":
        """The mean."""
        return uniform_soup(networks)


@register
@dataclass(frozen=True, kw_only=True)
class GreedySoup(OfNetworks):
    """The mean of those that help."""

    name: ClassVar[str] = "greedy_soup"
    title: ClassVar[str] = "Greedy soup (dense)"
    order: ClassVar[float] = 96
    style: ClassVar[tuple[str, str] | None] = ("#6655BB", "H")

    def mix(self, run: "Run", networks: list["Weights"]) -> "Weights":
        """The mean of the chosen; `members` says which."""
        weights, run.found["members"] = greedy_soup(networks, run.score)
        return weights


@register
@dataclass(frozen=True, kw_only=True)
class InstantModelSoup(Soup):
    """The pre-trained network, moved towards sparse networks if validation gains (Algorithm 3).

    Then it is fine-tuned like any other.
    """

    name: ClassVar[str] = "instant_model_soup"
    title: ClassVar[str] = "Instant Model Soup (dense)"
    order: ClassVar[float] = 97
    style: ClassVar[tuple[str, str] | None] = ("#9988DD", ".")
    kind: ClassVar[str] = "denoisers"

    denoisers: int = setting(
        "instant_model_soup: how many sparse networks are trained …",
        integer(1, MOST_NETWORKS),
        section="model_soup",
        paper=8,
        quick=3,
    )
    steps: int = setting(
        "… for so many steps …", integer(1, MOST_STEPS), section="model_soup", paper=100, quick=20
    )
    sparsity_range: list[float] = setting(
        "… from low to high sparsity …",
        span(0, low_too=True, high=1),
        section="model_soup",
        default=[0.1, 0.5],
    )
    subset: float = setting(
        "… on this share of the training rows",
        number(0, 1, low_too=False),
        section="model_soup",
        default=0.1,
    )
    coefficients: list[float] = setting(
        "instant_model_soup: shares that a sparse network may get",
        shares(),
        section="model_soup",
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
    )

    def find(self, run: "Run", sparsity: float) -> None:
        """Train the sparse networks, all from the pre-trained weights; merge what helps."""
        from instant_soup.sparsity import scores

        networks = []
        low, high = self.sparsity_range
        for n in range(self.denoisers):
            own = low + (high - low) * n / max(1, self.denoisers - 1)
            mask = scores.magnitude(run.weights, own)
            protocol = self.protocol(run, n, self.subset)
            ahead = run.look_ahead(protocol, self.steps, f"denoiser {n}", mask)
            networks.append(ahead.weights)
        best, taken = run.score(run.state.weights), []
        for network in networks:
            run.state.weights, chosen, best = merge(
                run.state.weights, network, self.coefficients, run.score, best
            )
            taken.append(chosen)
        run.found["coefficients"] = taken
        run.moved(taken)


def trained_apart(run: "Run", recipes: list["Recipe"], label: str, last: int) -> list["Weights"]:
    """The weights that training from here up to step `last` leads to, by each of some recipes.

    The rate falls to zero there. The run is where it was, and has paid for all of them.
    """
    start, trained = run.moment(), []
    for n, recipe in enumerate(recipes):
        run.train(last, f"{label} {n}", recipe=recipe, total=last)
        trained.append({name: w.clone() for name, w in run.state.weights.items()})
        run.go_back(start)
    return trained


def interpolate(one: "Weights", other: "Weights", share: float) -> "Weights":
    """(1 − share) · one + share · other, weight by weight; exact at shares 0 and 1.

    Counters, such as those of a batch norm, are the first network's.
    """
    return {
        name: w.lerp(other[name], share) if w.is_floating_point() else w for name, w in one.items()
    }


def uniform_soup(networks: list["Weights"]) -> "Weights":
    """The mean of several networks (Wortsman et al. 2022); counters are the first one's."""
    import torch

    return {
        name: torch.stack([weights[name] for weights in networks]).mean(0)
        if one.is_floating_point()
        else one
        for name, one in networks[0].items()
    }


def greedy_soup(networks: list["Weights"], score: "Score") -> tuple["Weights", list[int]]:
    """Average the networks that help (Wortsman et al. 2022).

    Networks are tried from the best down. One stays in the soup if the soup's score does not fall
    by it. So the soup never scores below its best network.

    Args:
        networks: Weights of each network.
        score: Validation score of weights, the higher the better.

    Returns:
        The mean, and the numbers of its networks, best first.
    """
    scores = [score(weights) for weights in networks]
    order = sorted(range(len(networks)), key=lambda i: -scores[i])
    chosen, best = [order[0]], scores[order[0]]
    for i in order[1:]:
        found = score(uniform_soup([networks[j] for j in [*chosen, i]]))
        if found >= best:
            chosen, best = [*chosen, i], found
    return uniform_soup([networks[i] for i in chosen]), chosen


def merge(
    network: "Weights", other: "Weights", coefficients: list[float], score: "Score", best: float
) -> tuple["Weights", float, float]:
    """Move a network towards another one by the coefficient that scores best (Algorithm 3).

    Args:
        network: Name → tensor.
        other: Name → tensor.
        coefficients: Shares that the other network may get.
        score: Validation score of weights, the higher the better.
        best: The network's own score. If no coefficient beats it, the network stays as it is, at
            coefficient 0. So scores never fall.

    Returns:
        Weights, coefficient and score.
    """
    chosen, weights = 0.0, network
    for coefficient in coefficients:
        mixed = interpolate(network, other, coefficient)
        if (found := score(mixed)) > best:
            chosen, weights, best = coefficient, mixed, found
    return weights, chosen, best
