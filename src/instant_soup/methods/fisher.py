"""Fisher pruning (Theis et al. 2018) with the second moments that AdamW keeps anyway.

Setting a weight to zero raises the loss by about w² F / 2, F the mean squared gradient. AdamW's
second moment is a running mean of just that, so the score costs nothing. A factor that is the same
for all weights (the 2, the correction of a young mean) does not change which of them are largest.
"""

import torch

from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask

Weights = dict[str, torch.Tensor]


def fisher_scores(weights: Weights, second_moments: Weights) -> Weights:
    """w² · v of each weight, in fp32; `second_moments` holds v for at least these weights."""
    return {n: w.float().square() * second_moments[n].float() for n, w in weights.items()}


def fisher(weights: Weights, second_moments: Weights, sparsity: float) -> Mask:
    """The weights whose loss would cost most stay, of all matrices together."""
    scores = fisher_scores(weights, second_moments)
    return masks.keep_largest(scores, masks.keep_count(weights, sparsity))
