"""Denoisers' training protocols: cheap, varied, chosen by a key (Algorithm 2)."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from instant_soup.config.sections import Recipe
from instant_soup.seeds import generator


@dataclass(frozen=True)
class Protocol:
    """How a network is trained for a while: P_n and D_n of Algorithm 2."""

    learning_rate: float
    weight_decay: float
    rows: torch.Tensor  # sorted int64 row numbers
    seed: int

    def applied_to(self, recipe: Recipe) -> Recipe:
        """The recipe of a run with this protocol's rate, weight decay and seed."""
        drawn: dict[str, Any] = self.described()
        return replace(recipe, **drawn)

    def described(self) -> dict[str, float | int]:
        """What was chosen, without the rows."""
        return {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "seed": self.seed,
        }


def draw_protocol(
    recipe: Recipe,
    learning_rate_range: list[float],
    weight_decay_range: list[float],
    subset: float,
    rows: int,
    key: tuple[int, ...],
    uniform: bool = False,
) -> Protocol:
    """Choose one denoiser's training protocol P_n and data subset D_n at random.

    Args:
        recipe: The run's settings of training.
        learning_rate_range: The denoiser's rate is the recipe's times a factor, sampled
            log-uniformly from this range, unless `uniform`.
        weight_decay_range: The decay is sampled uniformly from this range. It is a value of its
            own, not a factor, as BERT's base decay is zero.
        subset: Share of the training rows, at least one batch.
        rows: How many training rows there are.
        key: Numbers that seed the choice.
        uniform: Whether the factor is sampled uniformly.

    Returns:
        The protocol; its `seed` orders the subset and drives dropout.
    """
    draws = generator(*key)
    ends = torch.tensor(list(learning_rate_range), dtype=torch.float64)
    low, high = ends if uniform else ends.log()
    place = torch.rand((), dtype=torch.float64, generator=draws) * (high - low) + low
    factor = place if uniform else place.exp()
    least, most = weight_decay_range
    decay = torch.rand((), dtype=torch.float64, generator=draws) * (most - least) + least
    size = min(rows, max(recipe.batch_size, round(subset * rows)))
    return Protocol(
        learning_rate=recipe.learning_rate * float(factor),
        weight_decay=float(decay),
        rows=torch.randperm(rows, generator=draws)[:size].sort().values,
        seed=int(torch.randint(2**31, (), generator=draws)),
    )
