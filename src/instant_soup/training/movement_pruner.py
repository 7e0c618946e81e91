"""Movement pruning's mask: the weights with the largest learnt scores (methods/movement.py)."""

import torch

from instant_soup.sparsity import scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training.pruner import FixedMask, Parameters, Tensors
from instant_soup.training.schedule import cubic, learning_rate


class MovementPruner(FixedMask):
    """A mask of the best scores, which learn through it; the weights it prunes are kept here."""

    def __init__(
        self,
        mask: Mask,
        sparsity: float,
        *,
        begin: int,
        settled: int,
        total: int,
        learning_rate: float,
        every: int,
        local: bool,
    ) -> None:
        super().__init__(mask)
        self.sparsity, self.begin, self.settled, self.total = sparsity, begin, settled, total
        self.rate, self.every, self.local = learning_rate, every, local
        self.done = False
        self.stored: Tensors = {}  # the dense weights
        self.learnt: Tensors = {}  # the scores
        self.of_scores: torch.optim.AdamW  # while they learn

    @property
    def finished(self) -> bool:
        """Whether the mask stays from here on."""
        return self.done

    def wants_gradients(self, step: int) -> bool:
        """The scores learn at every step."""
        return not self.done

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with scores of zero, or go on with those of a checkpoint."""
        super().attach(parameters, optimizer, tensors)
        self.done = bool(tensors) and bool(tensors["settled"])
        if self.done:
            return
        for name, p in self.parameters.items():
            self.stored[name] = _own(tensors.get(f"weight.{name}", p), p)
            self.learnt[name] = _own(tensors.get(f"score.{name}", torch.zeros_like(p)), p)
        self.of_scores = torch.optim.AdamW(list(self.learnt.values()), lr=0.0, weight_decay=0.0)
        for name, one in self.learnt.items():
            if f"first.{name}" in tensors:
                self.of_scores.state[one] = {
                    "step": tensors[f"steps.{name}"].cpu().clone(),
                    "exp_avg": _own(tensors[f"first.{name}"], one),
                    "exp_avg_sq": _own(tensors[f"second.{name}"], one),
                }

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None:
        """Learn the scores from the dense gradients; put the pruned weights back for the step."""
        if not self.done:
            dense = gradients if gradients is not None else self._own_gradients()
            for name, gradient in dense.items():
                self.learnt[name].grad = gradient * self.stored[name]
            with torch.no_grad():
                for name in self.factors:  # none while nothing is pruned
                    self.parameters[name].copy_(self.stored[name])
        if gradients is None:
            self._mask_gradients()

    def after_step(self, step: int) -> None:
        """Take the scores' step; keep the dense weights, and leave the network pruned."""
        if self.done:
            return
        for group in self.of_scores.param_groups:
            group["lr"] = learning_rate(step, self.total, self.rate)
        self.of_scores.step()
        self.of_scores.zero_grad()
        steps_done = step + 1
        if steps_done >= self.settled:
            # From here on it is a fixed mask: what it prunes is gone.
            self.move_to(self._best(self.sparsity))
            self.done = True
            del self.of_scores
            self.stored, self.learnt = {}, {}
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.stored[name].copy_(parameter)
        if steps_done > self.begin and (steps_done - self.begin) % self.every == 0:
            self.mask = self._best(self._target(steps_done))
            self._count()
            self._make_factors()
        with torch.no_grad():
            for name, factor in self.factors.items():
                self.parameters[name].mul_(factor)

    def tensors(self) -> Tensors:
        """Scores, their moments, the mask and the weights that it prunes."""
        held: Tensors = {"settled": torch.tensor(self.done)}
        for name, kept in self.mask.items():
            held[f"mask.{name}"] = kept.to(torch.uint8)
        for name, one in self.learnt.items():
            held |= {f"score.{name}": one, f"weight.{name}": self.stored[name]}
            # A matrix that no loss has reached has no moments.
            if moments := self.of_scores.state.get(one):
                held |= {
                    f"steps.{name}": moments["step"],
                    **{f"first.{name}": moments["exp_avg"]},
                    **{f"second.{name}": moments["exp_avg_sq"]},
                }
        return held

    def _target(self, steps_done: int) -> float:
        return 1 - cubic(steps_done, self.begin, self.settled, 1.0, 1 - self.sparsity)

    def _best(self, sparsity: float) -> Mask:
        best = scores.best_each if self.local else scores.best
        mask = best(self.learnt, sparsity)
        return {name: kept.cpu() for name, kept in mask.items()}


def _own(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy where another tensor is."""
    return tensor.detach().to(like.device).clone()
