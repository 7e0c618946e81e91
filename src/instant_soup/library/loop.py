"""Prune in a training loop of one's own: two calls a step, around the optimiser's.

pruner = instant_soup.Pruner(model, optimizer, method="isp_plus", steps=1000, sparsity=0.8)
for batch in batches:
    loss(model, batch).backward()
    pruner.after_backward()
    optimizer.step()
    pruner.after_step()
    optimizer.zero_grad()
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from instant_soup.errors import UserError
from instant_soup.library.run import LoopRun, Loss, choose, own_random_numbers
from instant_soup.library.settings import (
    AMethod,
    check_carried,
    check_sparsity,
    check_steps,
    method_of,
    own_words,
    recipe_of,
)
from instant_soup.methods.base import AtStart
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import pruner as pruners
from instant_soup.training.pruner import FixedMask, Tensors


class Pruner:
    """Keeps a model in a foreign training loop sparse, by a method that trains once.

    `after_backward()` comes once for each step of the optimiser, when its gradients are summed and
    before they are clipped, `after_step()` after it. Optimiser and schedule are the loop's. Between
    two steps the network is pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        method: AMethod = "isp",
        steps: int,
        sparsity: float = 0.8,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        prunable: Callable[[str, torch.Tensor], bool] | None = None,
        seed: int = 0,
        learning_rate: float | None = None,
        clip_norm: float | None = 1.0,
        precision: str = "fp32",
        epoch: int | None = None,
        resume: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Find the mask, where the method does so before training.

        `steps`: of the optimiser, in the whole training. `method`, `settings`, `prunable`, `loss`
        and `batches` are as of `instant_soup.prune`; batches and loss are for methods that train
        beside the loop, or take gradients before it. They do so at `learning_rate` (the
        optimiser's, if none), `clip_norm` and `precision`. `epoch`: steps in a pass over the data,
        where that is not the number of batches. `resume`: a `state_dict` to go on from; the model
        and the optimiser have theirs already.

        UserError for settings that cannot be.
        """
        self.method, self.target, self.total = method_of(method, settings), sparsity, steps
        check_carried(self.method)
        check_steps(steps)
        check_sparsity(sparsity)
        check_single_process()
        if self.method.wants_batches():
            for name, given in (("batches", batches), ("loss", loss)):
                if given is None:
                    raise UserError(
                        f"{name}: {self.method.name} trains beside the loop or takes gradients "
                        f"before it, and none is given; allowed: {name} as of instant_soup.prune"
                    )
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        group = optimizer.param_groups[0]
        if learning_rate is None:
            learning_rate = float(group.get("initial_lr", group["lr"]))  # before a warm-up
        recipe = recipe_of(
            seed, learning_rate=learning_rate, weight_decay=0.0, precision=precision,
            clip_norm=1e30 if clip_norm is None else clip_norm,
        )  # fmt: skip
        self.run = LoopRun(
            model, batches, loss, choose(model, prunable), recipe, steps,
            optimizer=optimizer, looks_at=self.method.looks_at, epoch=epoch,
        )  # fmt: skip
        with own_words(self.method):
            self.method.check(sparsity, self.run.epochs)
        if resume is None:
            self._begin()
        else:
            self.load_state_dict(resume)

    def after_backward(self, gradients: Tensors | None = None) -> None:
        """Mask the gradients, and learn from the dense ones; to be called before clipping.

        `gradients`: the dense ones by name, where hooks have masked the parameters' own already.
        """
        self.inner.after_backward(self.step, gradients)

    def after_step(self) -> None:
        """Prune where it is time; to be called after each step of the optimiser."""
        self.run.step += 1
        self.inner.after_step(self.run.step - 1)

    @property
    def step(self) -> int:
        """Steps of the optimiser that are done."""
        return self.run.step

    @property
    def mask(self) -> Mask:
        """Name → boolean tensor of what is kept now."""
        return self.inner.mask

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned now."""
        return masks.sparsity(self.inner.mask)

    @property
    def done(self) -> bool:
        """Whether the mask is the last one."""
        return self.inner.finished

    def state_dict(self) -> dict[str, Any]:
        """What must be kept beside the model's and the optimiser's states, to go on."""
        kept = {f"mask.{n}": m.to(torch.uint8) for n, m in self.mask.items()}
        tensors = {n: t.detach().cpu().clone() for n, t in (kept | self.inner.tensors()).items()}
        return {**self._identity(), "step": self.step, "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`; the model and the optimiser have theirs loaded, too.

        UserError when it is of another method, sparsity, number of steps or model.
        """
        for name, own in self._identity().items():
            if state.get(name) != own:
                raise UserError(f"resume: its {name} is {state.get(name)}; allowed: {own}")
        named = {name: p for name, p in self.run.model.named_parameters() if name in self.run.mask}
        found = {n: tuple(t.shape) for n, t in state["tensors"].items() if n.startswith("mask.")}
        if found != {f"mask.{name}": tuple(p.shape) for name, p in named.items()}:
            raise UserError("resume: it is of other matrices; allowed: a state of this model's")
        self._begin(state["step"], state["tensors"])

    def _begin(self, step: int = 0, tensors: Tensors | None = None) -> None:
        """Make the pruner of the method, at the start or later, and let it take hold."""
        run, tensors = self.run, tensors or {}
        run.step = run.state.step = step
        # A search before training is done by then.
        at_once = bool(tensors) and isinstance(self.method, AtStart)
        with own_words(self.method), own_random_numbers(run.model):
            inner = FixedMask(run.mask) if at_once else self.method.pruner(run, self.target)
            self.inner: pruners.Pruner = inner
            if not tensors:
                run.take_to_model(inner.mask)
            inner.attach(dict(run.model.named_parameters()), run.optimizer, tensors)

    def _identity(self) -> dict[str, Any]:
        return {"method": self.method.name, "sparsity": self.target, "steps": self.total}


def check_single_process() -> None:
    """UserError where several processes train: each would find a mask of its own."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and (size := torch.distributed.get_world_size()) > 1:
        raise UserError(
            f"processes: {size} are not allowed beside pruning, as each would find a mask of its "
            "own; allowed: 1"
        )
