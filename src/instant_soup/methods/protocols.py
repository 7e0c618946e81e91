"""Denoisers: cheap, varied training protocols whose weak masks make the soup (Algorithm 2)."""

import torch

from instant_soup.seeds import generator


def draw_protocol(settings: dict, rows: int, key: tuple[int, ...]) -> dict:
    """Draw one denoiser's training protocol P_n and data subset D_n.

    The learning rate is the base rate times a factor drawn log-uniformly from
    `learning_rate_range`; the weight decay is drawn uniformly from `weight_decay_range` (its own
    value, not a factor: BERT's base decay is zero). The subset is a random `subset` share of the
    training rows, at least one batch; `seed` orders it and drives dropout.

    Returns learning_rate, weight_decay, rows (a sorted int64 tensor of row numbers), seed.
    """
    draws = generator(*key)
    low, high = torch.tensor(settings["learning_rate_range"], dtype=torch.float64).log()
    factor = torch.rand((), dtype=torch.float64, generator=draws) * (high - low) + low
    least, most = settings["weight_decay_range"]
    decay = torch.rand((), dtype=torch.float64, generator=draws) * (most - least) + least
    size = min(rows, max(settings["batch_size"], round(settings["subset"] * rows)))
    return {
        "learning_rate": settings["learning_rate"] * float(factor.exp()),
        "weight_decay": float(decay),
        "rows": torch.randperm(rows, generator=draws)[:size].sort().values,
        "seed": int(torch.randint(2**31, (), generator=draws)),
    }
