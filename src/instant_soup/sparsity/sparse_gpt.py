"""SparseGPT's sweep over a matrix: columns are pruned from left to right, later ones make up.

The loss is that of the matrix's own outputs, ½ Σ δᵢ H δᵢᵀ over its rows, where H are the second
moments of its inputs. With U the upper Cholesky factor of H⁻¹, U_jj² is the j-th entry of the
inverse that is left when the columns before j are settled. Removing w costs w² / (2 U_jj²), and
moves column k > j by −w U_jk / U_jj (Frantar & Alistarh 2023).
"""

from collections.abc import Callable

import torch

WIDTH = 128  # columns whose mask is chosen together
DAMPING = 0.01  # of the mean of H's diagonal, added to it
NOTHING = 1e-12  # of it, in place of an input that is always zero


def factor(moments: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Factor the second moments of a matrix's inputs.

    A weight whose input is always zero costs next to nothing, and moves nothing.

    Args:
        moments: The mean of x xᵀ, inputs × inputs.
        damping: Share of the diagonal's mean that is added to it.

    Returns:
        U, inputs × inputs, in fp64.
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
    """Prune a matrix column by column; weights that stay make up for those that go.

    Args:
        weight: Outputs × inputs.
        upper: U of `factor`.
        choose: `choose(i, costs)` is the mask of the i-th block of `width` columns. `costs`,
            outputs × columns, has w² / U_jj² of the weights as they are by then.
        width: Columns in a block.

    Returns:
        The mask (outputs × inputs; True: kept), and the new weights.
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
