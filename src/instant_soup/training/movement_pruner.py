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

    def attach(
        self,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer,
        tensors: Tensors,
    ) -> None:
        """Begin with scores of zero, or go on with those of a checkpoint."""
        named = {name: parameters[name] for name in self.mask}
        if tensors:
            self.mask = {n: tensors[f"mask.{n}"].bool().cpu() for n in self.mask}
            self._count()
        super().attach(parameters, optimizer, tensors)
        self.done = bool(tensors) and bool(tensors["settled"])
        self.stored = {n: _own(tensors.get(f"weight.{n}", p), p) for n, p in named.items()}
        self.learnt = {
            n: _own(tensors.get(f"score.{n}", torch.zeros_like(p)), p) for n, p in named.items()
        }
        self.of_scores = torch.optim.AdamW(list(self.learnt.values()), lr=0.0, weight_decay=0.0)
        if tensors:
            for name, one in self.learnt.items():
                self.of_scores.state[one] = {
                    "step": tensors["steps"].clone(),
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
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.stored[name])
        super().after_backward(step, gradients)

    def after_step(self, step: int) -> None:
        """Take the scores' step; keep the dense weights, and leave the network pruned."""
        if self.done:
            return
        for group in self.of_scores.param_groups:
            group["lr"] = learning_rate(step, self.total, self.rate)
        self.of_scores.step()
        self.of_scores.zero_grad()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.stored[name].copy_(parameter)
        steps_done = step + 1
        if steps_done >= self.settled:
            # From here on it is a fixed mask: what it prunes is gone.
            self.move_to(self._best(self.sparsity))
            self.done = True
        elif steps_done > self.begin and (steps_done - self.begin) % self.every == 0:
            self.mask = self._best(self._target(steps_done))
            self._count()
            self._make_factors()
        if not self.done:
            self._leave_pruned()

    def tensors(self) -> Tensors:
        """Scores, their moments, the mask and the weights that it prunes."""
        held: Tensors = {"settled": torch.tensor(self.done)}
        for name, one in self.learnt.items():
            moments = self.of_scores.state[one]
            held |= {
                **{f"mask.{name}": self.mask[name].to(torch.uint8), f"score.{name}": one.detach()},
                **{f"first.{name}": moments["exp_avg"], f"second.{name}": moments["exp_avg_sq"]},
                f"weight.{name}": self.stored[name],
            }
            held["steps"] = moments["step"]
        return held

    def _target(self, steps_done: int) -> float:
        return 1 - cubic(steps_done, self.begin, self.settled, 1.0, 1 - self.sparsity)

    def _best(self, sparsity: float) -> Mask:
        best = scores.best_each if self.local else scores.best
        mask = best({name: one.detach() for name, one in self.learnt.items()}, sparsity)
        return {name: kept.cpu() for name, kept in mask.items()}

    def _leave_pruned(self) -> None:
        with torch.no_grad():
            for factor, parameter in zip(self.factors, self.parameters.values(), strict=False):
                parameter.mul_(factor)


def _own(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy where another tensor is."""
    return tensor.detach().to(like.device).clone()
