"""What keeps a network sparse while it trains: a mask that stays, or one that moves.

A pruner is called by whoever trains, the engine (loop.py) or your own loop:

    pruner.attach(parameters, optimizer, tensors)   once, before the first step; what it trains
                                                    itself, it adds to the optimiser in a group
    pruner.after_backward(step)                     the gradients are there; before clipping
    pruner.after_step(step)                         the optimiser has taken its step
    pruner.tensors()                                what a checkpoint must hold beside the state
    pruner.wants_gradients(step)                    whether it needs a step's dense gradients
    pruner.finished                                 whether the mask is final

Between two steps the pruned weights are exact zeros. So whoever looks at the network, to validate
or to save it, sees it pruned. A pruner that needs the dense weights, as movement pruning does,
holds them itself and puts them back for the optimiser's step. One that lets pruned weights grow
again at once (PLATON's leaky zeros) has a mask that says so.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Cut, Mask
from instant_soup.sparsity.ranking import WHOLE, Shards, sums
from instant_soup.training.exchange import own_part, shards_of

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

    def factor(self, name: str) -> torch.Tensor | None:
        """What a matrix's gradient is multiplied by; None: it stays as it is."""

    @property
    def finished(self) -> bool:
        """Whether the mask is final."""

    def wants_gradients(self, step: int) -> bool:
        """Whether it needs the dense gradients of a step."""

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin, or go on with the tensors of a checkpoint.

        Args:
            parameters: Name → parameter of the network.
            optimizer: The optimiser that trains it.
            tensors: What `tensors()` returned when the checkpoint was written; empty at the start.
        """

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None:
        """Use and mask the gradients, before they are clipped.

        Args:
            step: The step, counted from 0.
            gradients: Name → dense gradient, if those in the parameters are masked already.
        """

    def after_step(self, step: int) -> None:
        """Prune, if it is time, after the optimiser's step."""

    def tensors(self) -> Tensors:
        """What a checkpoint must hold beside the state."""


class FixedMask:
    """One mask for a whole stretch of training.

    The weights that it prunes must be zero already, and so must their moments. They stay exact
    zeros, because masked gradients leave AdamW's update of a zero at zero.
    """

    def __init__(
        self, mask: Mask, gradients_at: Iterable[int] = (), gather: Gather = latest
    ) -> None:
        """Take the mask.

        Args:
            mask: Name → boolean tensor of the weight's shape; True: kept.
            gradients_at: Steps whose dense gradients are kept, in `gradients`.
            gather: `gather(held, gradients)` says what is kept of them.
        """
        self.mask = mask
        self.gradients_at, self.gather = frozenset(gradients_at), gather
        self.gradients: Tensors = {}
        self.factors: Tensors = {}
        self.shards: Shards = WHOLE  # which part of the weights is here
        self._count()

    @property
    def finished(self) -> bool:
        """Whether the mask is final."""
        return True

    def wants_gradients(self, step: int) -> bool:
        """Whether the dense gradients of a step are kept."""
        return step in self.gradients_at

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Take hold of the parameters that the mask names, and of a checkpoint's tensors."""
        if any(name.startswith("mask.") for name in tensors):
            self.mask = {name: tensors[f"mask.{name}"].bool().cpu() for name in self.mask}
        kept = {n: tensors.get(f"gradient.{n}") for n in self.mask}
        self.gradients = {n: g for n, g in kept.items() if g is not None}
        self.parameters = {name: parameters[name] for name in self.mask}
        self.optimizer, self.shards = optimizer, shards_of(self.parameters)
        self._count()
        self._make_factors()

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None:
        """Mask the gradients of the pruned weights.

        Args:
            step: The step, counted from 0.
            gradients: Name → dense gradient, if those in the parameters are masked already, as the
                hooks of another's loop do. A matrix that the loss does not reach has none.
        """
        if self.wants_gradients(step):
            self.gradients = self.gather(self.gradients, gradients or self._own_gradients())
        if gradients is None:
            self._mask_gradients()

    def after_step(self, step: int) -> None:
        """Do nothing: the mask stays."""

    def tensors(self) -> Tensors:
        """The gradients that are kept; the state's zeros are the mask."""
        return {f"gradient.{name}": g for name, g in self.gradients.items()}

    def move_to(self, found: Mask | Cut, spared: Collection[str] = ()) -> None:
        """Take another mask: what it prunes becomes zero, in the weights and the moments.

        Stale momentum would move pruned weights again at the next step.

        Args:
            found: The mask, or a cut, which changes weights that stay.
            spared: Keys of the optimiser's moments that stay as they are.
        """
        self.mask = mask = found.mask if isinstance(found, Cut) else found
        self._count()
        self._make_factors()
        with torch.no_grad():
            for name, weight in found.weights.items() if isinstance(found, Cut) else ():
                own_part(self.parameters[name]).copy_(weight)
            masks.apply(mask, self.weights())
            for name, key, moment in self.moments():
                if key not in spared:
                    masks.apply({name: mask[name]}, {name: moment})

    def moments(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Iterate over the moments: weight's name, key in the optimiser's state, tensor."""
        for name, parameter in self.parameters.items():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                if fits(moment, parameter):
                    yield name, key, own_part(moment)

    def weights(self) -> Tensors:
        """Name → weight, in the network's memory; of one in shards what is in this process."""
        return {name: own_part(p) for name, p in self.parameters.items()}

    def second_moments(self) -> Tensors:
        """Name → Adam's running mean of squared gradients, for weights that have one."""
        return {name: moment for name, key, moment in self.moments() if key == SECOND}

    def _count(self) -> None:
        self.kept, self.prunable = sums(masks.count(self.mask), self.shards)

    def _make_factors(self) -> None:
        self.factors = self._as_floats(self.factors)

    def _as_floats(self, held: Tensors) -> Tensors:
        """The mask as floats, in tensors that are held from before if there are some.

        Multiplying gradients by them in one call is far quicker than filling one by one.
        """
        floats: Tensors = {}
        for name, kept in self.mask.items() if self.kept < self.prunable else ():
            if self._may_have_gradient(name):
                if name not in held:
                    where = self.parameters[name].device
                    held[name] = torch.empty(kept.shape, dtype=torch.float32, device=where)
                floats[name] = held[name].copy_(kept.view(torch.uint8))
        return floats

    def factor(self, name: str) -> torch.Tensor | None:
        """What a matrix's gradient is multiplied by, the mask as floats; None: it stays as it is.

        A matrix that was frozen at first has none until it trains.
        """
        if name not in self.factors:
            self._make_factors()
        return self.factors.get(name)

    def _may_have_gradient(self, name: str) -> bool:
        parameter = self.parameters[name]
        return parameter.requires_grad or parameter.grad is not None

    def _own_gradients(self) -> Tensors:
        held = {n: p.grad for n, p in self.parameters.items()}
        return {n: own_part(g) for n, g in held.items() if g is not None}

    def _mask_gradients(self) -> None:
        own = self._own_gradients() if self.kept < self.prunable else {}
        factors = {name: f for name in own if (f := self.factor(name)) is not None}
        if factors:
            torch._foreach_mul_([own[name] for name in factors], list(factors.values()))


class MovingMask(FixedMask):
    """A mask that moves every few steps, until it settles at exactly the wanted sparsity.

    A subclass moves it in `after_step`, and settles it at step `settled`.
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
        """Begin with the given mask, or go on with that of a checkpoint."""
        self.done = bool(tensors) and bool(tensors["settled"])
        super().attach(parameters, optimizer, tensors)

    def tensors(self) -> Tensors:
        """The mask, as a kept weight may be zero too; and whether it is final."""
        mask = {f"mask.{name}": kept.to(torch.uint8) for name, kept in self.mask.items()}
        return {**mask, "settled": torch.tensor(self.done)}

    def settle(self, mask: Mask) -> None:
        """Take the final mask."""
        self.done = True
        self.move_to(mask)


def fits(moment: Any, parameter: torch.Tensor) -> bool:
    """Whether something in an optimiser's state has a number for each weight, not quantised."""
    same = isinstance(moment, torch.Tensor) and moment.shape == parameter.shape
    return same and moment.is_floating_point()


def own_copy(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy on another tensor's device."""
    return tensor.detach().to(like.device).clone()


class PrunesInRounds(FixedMask):
    """A mask that changes at the ends of rounds, within one training of another's loop.

    `find(i)` finds round i's mask on the network as it is then; or a cut, which changes weights
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
        """Begin, or go on with a checkpoint's mask after the rounds that it had done."""
        if "done" in tensors:
            self.done = int(tensors["done"])
        super().attach(parameters, optimizer, tensors)
        self._prune_when_due(0)

    def after_step(self, step: int) -> None:
        """Prune, if a round ends with this step."""
        self._prune_when_due(step + 1)

    def tensors(self) -> Tensors:
        """How many rounds are done, and the mask of the last of them."""
        held = {f"mask.{name}": kept.to(torch.uint8) for name, kept in self.mask.items()}
        return {**super().tensors(), "done": torch.tensor(self.done), **held}

    def _prune_when_due(self, steps_done: int) -> None:
        due = False
        while not self.finished and self.ends[self.done] <= steps_done:
            with self.aside(self):
                found = self.find(self.done)
            self.move_to(found)
            self.done += 1
            due = True
        if due:
            self.gradients = {}  # those of the next round are others
