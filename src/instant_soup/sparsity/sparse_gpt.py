"""SparseGPT's sweep over a matrix: columns go from left to right, those behind make up for them.

The loss is that of the matrix's own outputs, ½ Σ δᵢ H δᵢᵀ over its rows, H the second moments of
its inputs. With U the upper Cholesky factor of H⁻¹, U_jj² is the j-th entry of the inverse that is
left when the columns before j are settled: removing w costs w² / (2 U_jj²), and moves column k > j
by −w U_jk / U_jj. (Frantar & Alistarh 2023)
"""

from collections.abc import Callable

import torch

WIDTH = 128  # columns whose mask is chosen together
DAMPING = 0.01  # of the mean of H's diagonal, added to it
NOTHING = 1e-12  # of it, in place of an input that is always zero


def factor(moments: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """U (inputs × inputs, fp64) of the second moments of a matrix's inputs.

    What multiplies an input that is always zero costs next to nothing, and moves nothing.
    """
    h = moments.double().clone()
    diagonal, dead = h.diagonal(), h.diagonal() == 0
    mean = diagonal.mean() if not dead.all() else torch.ones(())
    diagonal += damping * mean
    diagonal[dead] = NOTHING * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)


def sweep(
    weight: torch.Tensor,
    upper: torch.Tensor,
    choose: Callable[[int, torch.Tensor], torch.Tensor],
    width: int = WIDTH,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix's mask, and its weights when those that stay have made up for the others.

    `choose(i, costs)` is the mask of the i-th block of `width` columns, of what its removals cost
    (w² / U_jj², outputs × columns) on the weights as they are by then.
    """
    w = weight.double().clone()
    masks = []
    for i, first in enumerate(range(0, w.shape[1], width)):
        here = slice(first, first + width)
        own, u = w[:, here], upper[here, here]
        kept = choose(i, (own / u.diagonal()).square())
        errors = torch.zeros_like(own)
        for j in range(own.shape[1]):
            errors[:, j] = own[:, j].where(~kept[:, j], 0.0) / u[j, j]
            own[:, j:] -= errors[:, j, None] * u[j, j:]
        own.masked_fill_(~kept, 0.0)
        w[:, first + width :] -= errors @ upper[here, first + width :]
        masks.append(kept)
    return torch.cat(masks, dim=1), w
