"""The learning rate at each step, and how many steps a number of epochs takes."""


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """Optimiser steps in a number of epochs, at least one."""
    return max(1, round(epochs * steps_per_epoch))


def learning_rate(
    step: int,
    total: int,
    peak: float,
    warmup_steps: int = 0,
    cycles: int = 1,
    lowest: float = 0.0,
) -> float:
    """Linear warm-up to `peak`, then linear decay to zero at `total` (paper, section 3).

    `step` counts from 0; the first step after the warm-up has the full rate. In several `cycles`
    it falls that often, see `cyclic`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if cycles > 1:
        return peak * cyclic(step - warmup_steps, total - warmup_steps, cycles, lowest)
    return peak * (total - step) / max(1, total - warmup_steps)


def cyclic(step: int, total: int, cycles: int, lowest: float) -> float:
    """From 1 at a cycle's first step linearly to `lowest` at its last, then again.

    `cycles` cycles of equal length, up to a step, fill the steps 0 … total − 1 (the cyclic linear
    rate of Kurtic & Alistarh 2022, arXiv 2210.06384).
    """
    now = ((step + 1) * cycles - 1) // total
    first, following = total * now // cycles, total * (now + 1) // cycles
    return 1 - (1 - lowest) * (step - first) / max(1, following - first - 1)


def cubic(step: float, first: float, last: float, start: float, end: float) -> float:
    """From `start`, up to step `first`, to `end`, from step `last` on, fast and then slower.

    end + (start − end)(1 − (step − first) / (last − first))³ (Zhu & Gupta 2017).
    """
    if last <= first:
        return end if step >= last else start
    left = 1 - min(1.0, max(0.0, (step - first) / (last - first)))
    return end + (start - end) * left**3
