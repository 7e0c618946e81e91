"""What makes a weight worth keeping, and the masks of the weights that are worth most.

Scores are tensors shaped like the weights. The largest stay.

Fisher scores (Theis et al. 2018): setting a weight to zero raises the loss by about w² F / 2, where
F is the mean squared gradient. AdamW's second moment is a running mean of just that, so the score
costs nothing. A factor that is the same for all weights (the 2, the correction of a young mean)
does not change which of them are largest.
"""

from collections.abc import Iterable

import torch

from instant_soup.errors import UserError
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import (
    WHOLE,
    Pieces,
    Scores,
    Shards,
    computed,
    pieces_of,
    sums,
    whole_shapes,
)

Weights = dict[str, torch.Tensor]

SCORES = ("magnitude", "fisher")


def magnitude_scores(weights: Weights) -> Weights:
    """|w| in fp32."""
    return {name: w.abs().float() for name, w in weights.items()}


def fisher_scores(weights: Weights, second_moments: Weights, shards: Shards = WHOLE) -> Weights:
    """w² · v of each weight, in fp32; `second_moments` holds v for at least these weights.

    Raises:
        UserError: If all v are zero.
    """
    check_some((second_moments[name] for name in weights), shards)
    return {n: _fisher(w, second_moments[n]) for n, w in weights.items()}


def snip_scores(weights: Weights, gradients: Weights) -> Weights:
    """|g · w| in fp32: how much the loss changes without a weight, to first order.

    Raises:
        UserError: If all g are zero.
    """
    check_some(gradients[name] for name in weights)
    return {name: (gradients[name].float() * w.float()).abs() for name, w in weights.items()}


def check_some(gradients: Iterable[torch.Tensor], shards: Shards = WHOLE) -> None:
    """Check that weights' gradients, or what is made of them, are not all zero.

    Then all weights would be worth the same, and the first of the model would stay.

    Raises:
        UserError: If all are, in all shards together.
    """
    some = any(bool(gradient.any()) for gradient in gradients)
    if not sums([some], shards)[0]:
        raise UserError(
            "gradients: all are zero, so weights have no scores (a last layer of zeros passes none "
            "on, and a loss that is the same for all, or of another model than it is given, has "
            "none); allowed: a model and a loss with gradients, or scores by magnitude"
        )


def scores_of(
    kind: str, weights: Weights, second_moments: Weights, shards: Shards = WHOLE
) -> Weights:
    """Score all weights by magnitude or Fisher score.

    Args:
        kind: A name in SCORES.
        weights: Name → weight.
        second_moments: Name → AdamW's second moment, shaped like the weight; for `fisher`.
        shards: Which part of all weights these are.

    Returns:
        Name → fp32 scores, shaped like the weight.

    Raises:
        UserError: If a weight has no second moment, or all moments are zero.
    """
    if kind == "magnitude":
        return magnitude_scores(weights)
    check_moments(weights, second_moments)
    return fisher_scores(weights, second_moments, shards)


def check_moments(weights: Weights, second_moments: Weights) -> None:
    """UserError if a weight has no second moment, which Fisher scores are of."""
    for name in weights:
        if name not in second_moments:
            raise UserError(
                f"score: fisher needs the second moments of Adam or AdamW, and {name} has none "
                "(another optimizer, frozen, reached by no loss yet, or pruned before the first "
                "step); allowed: magnitude"
            )


def worth_of(
    kind: str, weights: Weights, second_moments: Weights, shards: Shards = WHOLE
) -> Scores:
    """The same scores, computed piece by piece as a ranking needs them."""
    if kind == "magnitude":
        return {name: by_magnitude(w) for name, w in weights.items()}
    check_moments(weights, second_moments)
    check_some((second_moments[name] for name in weights), shards)
    return {n: computed(_fisher, w, second_moments[n]) for n, w in weights.items()}


def by_magnitude(weight: torch.Tensor | Pieces) -> Pieces:
    """|w| in fp32, piece by piece."""
    pieces = pieces_of(weight)
    return pieces._replace(read=lambda where: pieces.read(where).abs().float())


def _fisher(w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return w.float().square().mul_(v.float())


def best(
    scores: Scores, sparsity: float, first: Mask | None = None, shards: Shards = WHOLE
) -> Mask:
    """Keep exactly the best weights of all matrices together, those in the mask `first` first."""
    return masks.keep_largest(scores, masks.keep_count(scores, sparsity, shards), first, shards)


def best_each(scores: Scores, sparsity: float, shards: Shards = WHOLE) -> Mask:
    """Keep the best weights of each matrix; all matrices have one density, up to a weight."""
    shapes = whole_shapes(scores, shards)
    kept = masks.share_out(
        {name: (1 - sparsity) * shape.numel() for name, shape in shapes.items()},
        masks.keep_count(scores, sparsity, shards),
    )
    return masks.keep_largest_each(scores, kept, shards)


def best_of_rows(scores: Weights, sparsity: float) -> Mask:
    """Keep the best weights of each row; all rows have one density, up to a weight."""
    rows = {
        (name, i): (1 - sparsity) * s.shape[1] for name, s in scores.items() for i in range(len(s))
    }
    kept = masks.share_out(rows, masks.keep_count(scores, sparsity))
    return {
        name: best_of_each(s, torch.tensor([kept[name, i] for i in range(len(s))]))
        for name, s in scores.items()
    }


def best_of_each(scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mark the kept[i] largest scores of each row i; of equal ones the first stays.

    Args:
        scores: Rows × columns.
        kept: One whole number for each row.

    Returns:
        Rows × columns, boolean; True: kept.

    Raises:
        UserError: If a score is NaN, which has no place in an order.
    """
    if scores.isnan().any():
        raise UserError(masks.NAN)
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return ranks < kept[:, None].to(ranks.device)


def magnitude(weights: Weights, sparsity: float, shards: Shards = WHOLE) -> Mask:
    """Global magnitude pruning: the largest |w| of all matrices together stay."""
    return best(worth_of("magnitude", weights, {}), sparsity, shards=shards)


def fisher(weights: Weights, second_moments: Weights, sparsity: float) -> Mask:
    """Global Fisher pruning: the weights whose removal would cost the loss most stay."""
    return best(worth_of("fisher", weights, second_moments), sparsity)
