"""Denoisers' training protocols: cheap, varied, drawn from a key (Algorithm 2)."""

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
        """What was drawn, but for the rows."""
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
) -> Protocol:
    """Draw one denoiser's training protocol P_n and data subset D_n.

    The learning rate is the recipe's times a factor drawn log-uniformly from
    `learning_rate_range`; the weight decay is drawn uniformly from `weight_decay_range` (its own
    value, not a factor: BERT's base decay is zero). The subset is a random `subset` share of the
    training rows, at least one batch; `seed` orders it and drives dropout.
    """
    draws = generator(*key)
    low, high = torch.tensor(list(learning_rate_range), dtype=torch.float64).log()
    factor = torch.rand((), dtype=torch.float64, generator=draws) * (high - low) + low
    least, most = weight_decay_range
    decay = torch.rand((), dtype=torch.float64, generator=draws) * (most - least) + least
    size = min(rows, max(recipe.batch_size, round(subset * rows)))
    return Protocol(
        learning_rate=recipe.learning_rate * float(factor.exp()),
        weight_decay=float(decay),
        rows=torch.randperm(rows, generator=draws)[:size].sort().values,
        seed=int(torch.randint(2**31, (), generator=draws)),
    )
