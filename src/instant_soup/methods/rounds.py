"""When to prune, and how much: rounds, calibration steps and the learning rate (Algorithm 1)."""

from instant_soup.errors import UserError


def round_sparsities(target: float, rate: float, rate_of: str) -> list[float]:
    """Sparsity after each round, up to exactly `target` (Algorithm 1, line 4).

    `rate` is the compression rate s: points of the total per round (`rate_of="total"`, the
    paper: 10 % reaches 70 % in 7 rounds) or a share of what is left (`"remaining"`, the
    released research code). All numbers are fractions between 0 and 1.
    """
    sparsities: list[float] = []
    while not sparsities or sparsities[-1] < target:
        done = len(sparsities) + 1
        reached = done * rate if rate_of == "total" else 1 - (1 - rate) ** done
        # Rounded, so that 3 * 0.2 is 0.6: a round's settings must not depend on float noise.
        sparsities.append(min(target, round(reached, 10)))
    return sparsities


def pattern(sparsity: float, m: int) -> int:
    """N of the N:M pattern with this sparsity: N non-zero weights of every M.

    UserError when (1 − S) · M is no whole number.
    """
    n = round((1 - sparsity) * m)
    if abs(n - (1 - sparsity) * m) > 1e-9 or not 0 < n < m:
        allowed = ", ".join(str(i / m) for i in range(1, m))
        raise UserError(
            f"params.yaml: sparsity: {sparsity} is no N:{m} pattern; allowed with criteria.m {m}: "
            f"{allowed}"
        )
    return n


def calibration_steps(round_index: int, seed_steps: int, growing: bool = True) -> int:
    """Training steps before round i = 0, 1, …'s pruning: t · (i + 1) (Algorithm 1, line 3).

    Not `growing`: t before every round, as in the released research code.
    """
    return seed_steps * (round_index + 1 if growing else 1)


def mask_finding_share(
    rounds: int, calibration: float, epochs: float, growing: bool = True
) -> float:
    """Share of the budget that `rounds` rounds spend on calibration: t(1 + … + R) / T."""
    return sum(calibration_steps(i, 1, growing) for i in range(rounds)) * calibration / epochs
