"""GraNet's mask: weights go by magnitude and come back by gradient (methods/granet.py)."""

import math

import torch

from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training.pruner import FixedMask, Parameters, Tensors
from instant_soup.training.schedule import cubic

LEAST = 0.01  # of the share that is exchanged, at the end of training


class GraNetPruner(FixedMask):
    """A mask that is updated every few steps, until it is settled."""

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
    ) -> None:
        super().__init__(mask)
        self.sparsity, self.every, self.end = sparsity, every, end
        self.settled, self.total, self.regrow = settled, total, regrow
        self.done = False

    @property
    def finished(self) -> bool:
        """Whether the mask stays from here on."""
        return self.done

    def wants_gradients(self, step: int) -> bool:
        """Those of a step that an update follows."""
        return self._due(step + 1)

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with the mask given, or go on with that of a checkpoint."""
        super().attach(parameters, optimizer, tensors)
        self.done = bool(tensors) and bool(tensors["settled"])

    def after_step(self, step: int) -> None:
        """Prune, and regenerate, where an update is due."""
        done = step + 1
        if not self._due(done):
            return
        weights = {name: p.detach() for name, p in self.parameters.items()}
        target = 1 - cubic(done, 0, self.end, 1.0, 1 - self.sparsity)
        here = {name: kept.to(weights[name].device) for name, kept in self.mask.items()}
        # A pruned weight ranks below all others, those that happen to be zero included.
        worth = {n: w.abs().float().where(here[n], -1.0) for n, w in weights.items()}
        mask = scores.best(worth, target)
        if done < self.settled:
            share = exchanged(done, self.total, self.regrow)
            mask = {
                name: regenerate(weights[name], kept, self.gradients[name], share)
                if name in self.gradients
                else kept
                for name, kept in mask.items()
            }
        self.gradients = {}
        self.move_to({name: kept.cpu() for name, kept in mask.items()})
        self.done = done >= self.settled

    def tensors(self) -> Tensors:
        """The mask: a weight that has just come back is zero, as a pruned one is."""
        mask = {f"mask.{name}": kept.to(torch.uint8) for name, kept in self.mask.items()}
        return {**mask, "settled": torch.tensor(self.done)}

    def _due(self, steps_done: int) -> bool:
        at_an_end = steps_done in (self.end, self.settled)
        return steps_done <= self.settled and (steps_done % self.every == 0 or at_an_end)


def exchanged(step: int, total: int, start: float) -> float:
    """The share that is exchanged at a step: from `start` to a hundredth of it, by a cosine."""
    return start * (LEAST + (1 - LEAST) * (1 + math.cos(math.pi * step / total)) / 2)


def regenerate(
    weights: torch.Tensor, kept: torch.Tensor, gradients: torch.Tensor, share: float
) -> torch.Tensor:
    """A matrix's mask with a share of its weights exchanged; as many stay.

    The smallest go (a share of them, rounded up); the largest |gradient| of all that are out comes
    in, of those that have just gone too.
    """
    nonzero = int(kept.count_nonzero())
    number = min(math.ceil(share * nonzero), nonzero, kept.numel() - nonzero)
    if number == 0:
        return kept
    worth = weights.abs().float().where(kept, -1.0)
    left = masks.largest(worth.flatten(), nonzero - number).view(kept.shape)
    pull = gradients.abs().float().where(~left, -1.0)
    grown = masks.largest(pull.flatten(), number).view(kept.shape)
    return left | grown
