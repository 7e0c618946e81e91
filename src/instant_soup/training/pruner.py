"""What keeps a network sparse while it trains: a mask that stays, or one that moves.

A pruner is called by whoever trains, the engine (loop.py) or a loop of one's own:

    pruner.attach(parameters, optimizer, tensors)   once, before the first step
    pruner.after_backward(step)                     gradients are there: before clipping
    pruner.after_step(step)                         the optimiser has taken its step
    pruner.tensors()                                what a checkpoint must hold beside the state
    pruner.wants_gradients(step)                    whether it looks at a step's dense gradients
    pruner.finished                                 whether the mask is the last one

Between two steps the pruned weights are exact zeros, so that whoever looks at the network, to
validate or to save it, sees it pruned. A pruner that needs the dense weights (movement pruning
keeps what it prunes) holds them itself and puts them back for the optimiser's step. One that lets
pruned weights grow again at once (PLATON's leaky zeros) has a mask that says so.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import nn

from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Cut, Mask

Tensors = dict[str, torch.Tensor]
Parameters = dict[str, nn.Parameter]
SECOND = "exp_avg_sq"  # Adam's second moment, in an optimiser's state
# What is kept of gradients: of what was kept before, and of a step's dense ones.
Gather = Callable[[Tensors, Tensors], Tensors]


def latest(held: Tensors, gradients: Tensors) -> Tensors:
    """The last step's gradients, as they are."""
    return {name: g.clone() for name, g in gradients.items()}


class Pruner(Protocol):
    """What the engine asks of a pruner; `FixedMask` is the simplest of them."""

    mask: Mask
    kept: int  # weights that multiply at this step
    prunable: int
    factors: Tensors  # of gradients: the mask as floats, by name; nothing while nothing is pruned

    @property
    def finished(self) -> bool: ...

    def wants_gradients(self, step: int) -> bool: ...

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None: ...

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None: ...

    def after_step(self, step: int) -> None: ...

    def tensors(self) -> Tensors: ...


class FixedMask:
    """One mask for a whole stretch of training.

    The weights that it prunes must be zeros already, their moments too. They stay exact zeros,
    because masked gradients leave AdamW's update of a zero at zero.
    """

    def __init__(
        self, mask: Mask, gradients_at: Iterable[int] = (), gather: Gather = latest
    ) -> None:
        """`gradients_at`: steps whose dense gradients `gather` keeps, in `gradients`."""
        self.mask = mask
        self.gradients_at, self.gather = frozenset(gradients_at), gather
        self.gradients: Tensors = {}
        self.factors: Tensors = {}
        self._count()

    @property
    def finished(self) -> bool:
        """Whether the mask is the last one."""
        return True

    def wants_gradients(self, step: int) -> bool:
        """Whether it looks at the dense gradients of a step."""
        return step in self.gradients_at

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Take hold of the parameters of the mask's names, and of what a checkpoint had."""
        if any(name.startswith("mask.") for name in tensors):
            self.mask = {name: tensors[f"mask.{name}"].bool().cpu() for name in self.mask}
            self._count()
        kept = {n: tensors.get(f"gradient.{n}") for n in self.mask}
        self.gradients = {n: g for n, g in kept.items() if g is not None}
        self.parameters = {name: parameters[name] for name in self.mask}
        self.optimizer = optimizer
        self._make_factors()

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None:
        """Keep the gradients from the pruned weights.

        `gradients`: the dense ones, where those in the parameters are masked already (hooks of a
        foreign loop do that). A matrix that the loss does not reach has no gradient.
        """
        if self.wants_gradients(step):
            self.gradients = self.gather(self.gradients, gradients or self._own_gradients())
        if gradients is None:
            self._mask_gradients()

    def after_step(self, step: int) -> None:
        """Nothing: the mask stays."""

    def tensors(self) -> Tensors:
        """The gradients that are kept; the state's zeros are the mask."""
        return {f"gradient.{name}": g for name, g in self.gradients.items()}

    def move_to(self, found: Mask | Cut, spared: Collection[str] = ()) -> None:
        """Take another mask: what it prunes becomes zero, in the weights and the moments.

        Stale momentum would move pruned weights again at the next step. `spared`: keys of the
        optimiser's moments that stay as they are.
        """
        self.mask = mask = found.mask if isinstance(found, Cut) else found
        self._count()
        self._make_factors()
        with torch.no_grad():
            for name, weight in found.weights.items() if isinstance(found, Cut) else ():
                self.parameters[name].copy_(weight)
            masks.apply(mask, dict(self.parameters))
            for name, key, moment in self.moments():
                if key not in spared:
                    masks.apply({name: mask[name]}, {name: moment})

    def moments(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Weight's name, key in the optimiser's state, and tensor, of all shaped like a weight."""
        for name, parameter in self.parameters.items():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                    yield name, key, moment

    def second_moments(self) -> Tensors:
        """Adam's running mean of squared gradients, by name, where the optimiser holds one."""
        return {name: moment for name, key, moment in self.moments() if key == SECOND}

    def _count(self) -> None:
        self.kept, self.prunable = masks.count(self.mask)

    def _make_factors(self) -> None:
        # As floats: multiplying gradients by them in one call is far quicker than filling one by
        # one.
        self.factors = {}
        if self.kept < self.prunable:
            self.factors = {
                name: kept.to(self.parameters[name].device, torch.float32)
                for name, kept in self.mask.items()
            }

    def _own_gradients(self) -> Tensors:
        return {n: p.grad for n, p in self.parameters.items() if p.grad is not None}

    def _mask_gradients(self) -> None:
        if self.factors:
            own = self._own_gradients()
            if own:
                torch._foreach_mul_(list(own.values()), [self.factors[name] for name in own])


class MovingMask(FixedMask):
    """A mask that moves every few steps, until it is settled: exactly as sparse as is wanted.

    A subclass moves it in `after_step`, and settles at step `settled`.
    """

    def __init__(self, mask: Mask, sparsity: float, settled: int) -> None:
        super().__init__(mask)
        self.sparsity, self.settled = sparsity, settled
        self.done = False

    @property
    def finished(self) -> bool:
        """Whether the mask stays from here on."""
        return self.done

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with the mask given, or go on with that of a checkpoint."""
        self.done = bool(tensors) and bool(tensors["settled"])
        super().attach(parameters, optimizer, tensors)

    def tensors(self) -> Tensors:
        """The mask, whose weights may be zero as pruned ones are; whether it stays."""
        mask = {f"mask.{name}": kept.to(torch.uint8) for name, kept in self.mask.items()}
        return {**mask, "settled": torch.tensor(self.done)}

    def settle(self, mask: Mask) -> None:
        """Take the last mask."""
        self.done = True
        self.move_to(mask)


def own_copy(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy where another tensor is."""
    return tensor.detach().to(like.device).clone()


class PrunesInRounds(FixedMask):
    """A mask that changes at the ends of rounds, within one training: for a foreign loop.

    `find(i)` is round i's mask, found on the network as it is then; or a cut, which changes weights
    that stay. It is called within `aside`, which brings the run to where the loop is.
    """

    def __init__(
        self,
        mask: Mask,
        ends: list[int],
        find: Callable[[int], Mask | Cut],
        *,
        done: int = 0,
        gradients_at: Iterable[int] = (),
        gather: Gather = latest,
        aside: Callable[["PrunesInRounds"], AbstractContextManager] = nullcontext,
    ) -> None:
        super().__init__(mask, gradients_at, gather)
        self.ends, self.find, self.done, self.aside = ends, find, done, aside

    @property
    def finished(self) -> bool:
        """Whether the last round has pruned."""
        return self.done == len(self.ends)

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin, or go on with a checkpoint's mask and after the rounds that it had done."""
        if "done" in tensors:
            self.done = int(tensors["done"])
        super().attach(parameters, optimizer, tensors)
        self._prune_when_due(0)

    def after_step(self, step: int) -> None:
        """Prune where a round ends with this step."""
        self._prune_when_due(step + 1)

    def tensors(self) -> Tensors:
        """How many rounds are done, and the mask of the last of them."""
        held = {f"mask.{name}": kept.to(torch.uint8) for name, kept in self.mask.items()}
        return {**super().tensors(), "done": torch.tensor(self.done), **held}

    def _prune_when_due(self, steps_done: int) -> None:
        while not self.finished and self.ends[self.done] <= steps_done:
            with self.aside(self):
                found = self.find(self.done)
            self.move_to(found)
            self.done += 1
        self.gradients = {}
