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
    """Linear warm-up to `peak`, then linear decay to zero at `total` (paper, table 1).

    Args:
        step: The step, counted from 0; the first step after the warm-up has the full rate.
        total: Steps in all.
        peak: The highest rate.
        warmup_steps: Steps of the warm-up.
        cycles: How often the rate falls, see `cyclic`.
        lowest: The lowest rate of a cycle, as a share of `peak`.

    Returns:
        The rate at this step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if cycles > 1:
        return peak * cyclic(step - warmup_steps, total - warmup_steps, cycles, lowest)
    return peak * (total - step) / max(1, total - warmup_steps)


def cyclic(step: int, total: int, cycles: int, lowest: float) -> float:
    """A factor that falls linearly from 1 to `lowest`, again and again.

    This is the cyclic linear rate of Kurtic & Alistarh 2022, arXiv 2210.06384.

    Args:
        step: The step, counted from 0.
        total: Steps in all.
        cycles: Cycles of equal length, up to a step, that fill the steps 0 … total − 1.
        lowest: The factor at a cycle's last step.

    Returns:
        The factor at this step.
    """
    now = ((step + 1) * cycles - 1) // total
    first, following = total * now // cycles, total * (now + 1) // cycles
    return 1 - (1 - lowest) * (step - first) / max(1, following - first - 1)


def cubic(step: float, first: float, last: float, start: float, end: float) -> float:
    """A value that goes from `start` to `end`, fast and then slower.

    end + (start − end)(1 − (step − first) / (last − first))³ (Zhu & Gupta 2017).

    Args:
        step: The step.
        first: Up to this step the value is `start`.
        last: From this step on the value is `end`.
        start: The first value.
        end: The last value.

    Returns:
        The value at this step.
    """
    if last <= first:
        return end if step >= last else start
    left = 1 - min(1.0, max(0.0, (step - first) / (last - first)))
    return end + (start - end) * left**3
