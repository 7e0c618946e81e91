"""PLATON's mask: weights stay if the loss is sensitive to them, or may be (methods/platon.py)."""

import torch

from instant_soup.errors import UserError
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import computed, sums
from instant_soup.training.pruner import MovingMask, Parameters, Tensors, own_copy
from instant_soup.training.schedule import cubic


class PlatonPruner(MovingMask):
    """A mask of the largest sensitivity times uncertainty, both smoothed over windows of steps.

    With leaky zeros the network is pruned only right after a cut, and goes into the next step like
    that. The step moves pruned weights again, all that have a gradient. Until the next cut the
    network is dense, so `mask` keeps everything. From `settled` on, and with hard zeros from the
    first cut on, pruned weights stay exact zeros.
    """

    def __init__(
        self,
        mask: Mask,
        sparsity: float,
        *,
        begin: int,
        settled: int,
        every: int,
        sensitivity_decay: float,
        uncertainty_decay: float,
        hard: bool,
    ) -> None:
        super().__init__(mask, sparsity, settled)
        self.begin, self.every, self.hard = begin, every, hard
        self.sensitivity_decay, self.uncertainty_decay = sensitivity_decay, uncertainty_decay
        self.learns = False  # whether any gradient was not zero
        self.gradients_now: Tensors = {}  # of the step that is being taken, as the optimiser has it
        # In fp32, shaped like the weights.
        self.window: Tensors = {}  # |w · g|, added up since the last window ended
        self.sensitivity: Tensors = {}
        self.uncertainty: Tensors = {}

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with statistics of zero, or go on with those of a checkpoint."""
        super().attach(parameters, optimizer, tensors)
        for part, kept in self._statistics().items():
            for name, w in self.weights().items() if not self.done else ():
                start = torch.zeros_like(w, dtype=torch.float32)
                kept[name] = own_copy(tensors.get(f"{part}.{name}", start), w)

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None:
        """Take note of the gradients; a hard mask keeps them from the pruned weights."""
        super().after_backward(step, gradients)
        if not self.done:
            self.gradients_now = self._own_gradients()

    def after_step(self, step: int) -> None:
        """Add up |w · g| of the new weights; end a window and cut, if it is time."""
        if self.done:
            return
        steps_done = step + 1
        weights = self.weights()
        for name, gradient in self.gradients_now.items():
            self.window[name] += (weights[name].float() * gradient).abs_()
        self.gradients_now = {}
        if steps_done % self.every == 0:
            self._end_window()
        if steps_done >= self.settled:
            self.settle(self._best(self.sparsity))
            for kept in self._statistics().values():
                kept.clear()
        elif steps_done > self.begin and steps_done % self.every == 0:
            self._cut(self._best(self._target(steps_done)))
        elif not self.hard and self.kept < self.prunable:
            self._see(masks.full(self.mask))  # all that was cut has moved again

    def tensors(self) -> Tensors:
        """The mask, and the statistics as long as it moves."""
        parts = self._statistics().items()
        return super().tensors() | {f"{p}.{n}": t for p, kept in parts for n, t in kept.items()}

    def _statistics(self) -> dict[str, Tensors]:
        return {
            "window": self.window,
            "sensitivity": self.sensitivity,
            "uncertainty": self.uncertainty,
        }

    def _end_window(self) -> None:
        if not self.learns:
            told = [*self.window.values(), *self.sensitivity.values()]
            self.learns = any(sums([bool(one.any()) for one in told], self.shards))
        if not self.learns:
            raise UserError(
                "gradients: all were zero after the optimizer's steps, so weights have no scores; "
                "allowed: zero_grad() after after_step(), and a loss that depends on the weights"
            )
        for name, added in self.window.items():
            smooth, doubt = self.sensitivity[name], self.uncertainty[name]
            mean = added.div_(self.every)
            smooth.lerp_(mean, 1 - self.sensitivity_decay)
            doubt.lerp_(mean.sub_(smooth).abs_(), 1 - self.uncertainty_decay)
            added.zero_()

    def _best(self, sparsity: float) -> Mask:
        worth = {
            name: computed(torch.mul, s, self.uncertainty[name])
            if self.uncertainty_decay < 1
            else s
            for name, s in self.sensitivity.items()
        }
        first = {n: m.to(worth[n].device) for n, m in self.mask.items()} if self.hard else None
        found = scores.best(worth, sparsity, first, self.shards)
        return {name: kept.cpu() for name, kept in found.items()}

    def _target(self, steps_done: int) -> float:
        return 1 - cubic(steps_done, self.begin, self.settled, 1.0, 1 - self.sparsity)

    def _cut(self, mask: Mask) -> None:
        """Take a mask; leaky zeros keep their moments, and get gradients."""
        if self.hard:
            self.move_to(mask)
        else:
            self._see(mask)
            masks.apply(mask, self.weights())

    def _see(self, mask: Mask) -> None:
        self.mask = mask
        self._count()

    def _make_factors(self) -> None:
        if self.hard or self.done:
            super()._make_factors()
        else:
            self.factors = {}
