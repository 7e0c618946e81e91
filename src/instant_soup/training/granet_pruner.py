"""GraNet's mask, and RigL's: weights go by a score and come back by gradient.

methods/granet.py and methods/rigl.py say what is chosen.
"""

import math

import torch

from instant_soup.sparsity import masks, ranking, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import WHOLE, Shards
from instant_soup.training.pruner import MovingMask, Parameters, Tensors
from instant_soup.training.schedule import cubic

LEAST = 0.01  # of the share that is exchanged, at the end of training


class GraNetPruner(MovingMask):
    """A mask that is updated every few steps, until it is settled.

    An update has two parts. (a) The mask goes down to the density of the cubic schedule, which is
    final from step `end` on. (With `end` 0 the first mask has that density already.) (b) A share of
    each matrix's weights is exchanged: `exchanged(step, total, regrow, least)`. `ranks_by` names
    the scores by which weights go, `magnitude` or `fisher`.
    """

    def __init__(
        self,
        mask: Mask,
        sparsity: float,
        *,
        every: int,
        end: int,
        settled: int,
        total: int,
        regrow: float,
        least: float = LEAST,
        ranks_by: str = "magnitude",
    ) -> None:
        super().__init__(mask, sparsity, settled)
        self.every, self.end, self.ranks_by = every, end, ranks_by
        self.total, self.regrow, self.least = total, regrow, least

    def wants_gradients(self, step: int) -> bool:
        """Whether an update follows this step."""
        return self._due(step + 1)

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with the given mask, or go on with that of a checkpoint."""
        super().attach(parameters, optimizer, tensors)
        if not tensors and self.factors:
            self.move_to(self.mask)

    def after_step(self, step: int) -> None:
        """Prune and regenerate, if an update is due."""
        done = step + 1
        if not self._due(done):
            return
        weights = self.weights()
        target = self.sparsity
        if done < self.end:
            target = 1 - cubic(done, 0, self.end, 1.0, 1 - self.sparsity)
        here = {name: kept.to(weights[name].device) for name, kept in self.mask.items()}
        worth = scores.scores_of(self.ranks_by, weights, self.second_moments(), self.shards)
        # A pruned weight ranks below all others, those that happen to be zero included.
        mask = scores.best(worth, target, first=here, shards=self.shards)
        if done < self.settled:
            share = exchanged(done, self.total, self.regrow, self.least)
            mask = {
                name: regenerate(worth[name], kept, self.gradients[name], share, self.shards)
                if name in self.gradients
                else kept
                for name, kept in mask.items()
            }
        self.done = done >= self.settled
        gradients, self.gradients = self.gradients, {}
        self.move_to({name: kept.cpu() for name, kept in mask.items()})
        if self.ranks_by == "fisher":
            self._estimate({name: mask[name] & ~here[name] for name in gradients}, gradients)

    def _estimate(self, back: Mask, gradients: Tensors) -> None:
        """Set v of the weights that come back to g², one batch's estimate of the mean that v is.

        From zero it would take long to grow, and w² · v would remove them first of all.
        """
        for name, moment in self.second_moments().items():
            if name in back:
                index = ranking.true_indices(back[name].flatten())
                places = torch.unravel_index(index, moment.shape)
                moment[places] = gradients[name][places].to(moment.dtype).square()

    def _due(self, steps_done: int) -> bool:
        at_an_end = steps_done in (self.end, self.settled)
        return steps_done <= self.settled and (steps_done % self.every == 0 or at_an_end)


def exchanged(step: int, total: int, start: float, least: float = LEAST) -> float:
    """The share that is exchanged at a step.

    Args:
        step: The step.
        total: Steps in all.
        start: The share at step 0; from there it falls by a cosine.
        least: What is left of it at the end, as a share of `start`.

    Returns:
        A share from 0 to 1.
    """
    return start * (least + (1 - least) * (1 + math.cos(math.pi * step / total)) / 2)


def regenerate(
    worth: torch.Tensor,
    kept: torch.Tensor,
    gradients: torch.Tensor,
    share: float,
    shards: Shards = WHOLE,
) -> torch.Tensor:
    """Exchange a share of a matrix's weights; as many as before stay.

    Args:
        worth: Scores of the weights, not negative. Those that are worth least go.
        kept: Boolean tensor of the same shape; True: kept.
        gradients: Gradients of the same shape. Of all pruned weights, those just pruned included,
            the largest |gradient| come back.
        share: Share of the kept weights, rounded up.
        shards: Which part of the matrix these are.

    Returns:
        The new mask.
    """
    nonzero, size = ranking.sums([ranking.true_count(kept), kept.numel()], shards)
    number = min(math.ceil(share * nonzero), nonzero, size - nonzero)
    if number == 0:
        return kept
    left = masks.largest(worth, nonzero - number, among=kept, shards=shards)
    return left | masks.largest(gradients.abs().float(), number, among=~left, shards=shards)
