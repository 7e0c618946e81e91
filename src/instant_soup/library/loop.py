"""Prune in your own training loop: two calls a step, around the optimiser's.

Example:
    pruner = instant_soup.Pruner(model, optimizer, method="isp_plus", steps=1000, sparsity=0.8)
    for batch in batches:
        loss(model, batch).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from instant_soup.config.fields import check_value, integer
from instant_soup.config.sections import ALL
from instant_soup.errors import UserError
from instant_soup.library.model import (
    HALF,
    Wanted,
    check_gradients,
    check_precision,
    check_shards,
    check_some_stay,
    check_trainable,
    choose,
    unwrapped,
)
from instant_soup.library.run import LoopRun, Loss, own_random_numbers
from instant_soup.library.settings import (
    AMethod,
    as_plain,
    check_batches,
    check_carried,
    check_function,
    check_retraining_carried,
    check_same,
    check_sparsity,
    check_steps,
    method_of,
    own_words,
    recipe_of,
)
from instant_soup.methods.base import AtStart, Method
from instant_soup.methods.registry import settings_in
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import WHOLE
from instant_soup.training import exchange
from instant_soup.training import pruner as pruners
from instant_soup.training.pruner import FixedMask, Tensors
from instant_soup.training.retraining import freeze, small_parameters

# Those of torch that hold the second moments that Fisher scores are of, and those that do not.
WITH_MOMENTS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)
WITHOUT_MOMENTS = (
    *(torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop, torch.optim.RMSprop),
    *(torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax),
)
# They update each weight by its own gradient and moments: zeros stay zeros. Others (Muon, LBFGS,
# quantised moments) mix weights or round.
ELEMENTWISE = {*WITH_MOMENTS, *WITHOUT_MOMENTS}


class Pruner:
    """Prunes a model in a training loop of your own, by any method that trains once.

    Call `after_backward()` once for each step of the optimiser, when the gradients of all its
    batches are summed and before they are clipped. Call `after_step()` after the optimiser's step.
    The loop owns the optimiser and the schedule. Between two steps the network is pruned. Several
    processes each have such a loop around DistributedDataParallel, and end with one mask.

    Attributes:
        method: The method with its settings.
        target: The sparsity that the training ends with.
        total: The optimiser's steps in the whole training.
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
        prunable: Wanted | None = None,
        seed: int = 0,
        learning_rate: float | None = None,
        clip_norm: float | None = 1.0,
        precision: str = "fp32",
        epoch: int | None = None,
        retrain: str = "all",
        resume: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Check the settings, and find the mask if the method does so before training.

        Args:
            model: Any module; torch.compile's and DataParallel's wrappers are fine.
            optimizer: The loop's optimiser, or accelerate's wrapper of it. Of several the one
                whose moments and learning rate the method looks at.
            method: As in `instant_soup.prune`; the method must train only once.
            steps: The optimiser's steps in the whole training.
            sparsity: Share of the prunable weights to prune, between 0 and 1.
            batches: As in `instant_soup.prune`. Only methods that train beside the loop, or take
                gradients before it, need batches and a loss.
            loss: As in `instant_soup.prune`.
            prunable: `prunable(name, parameter)` says whether to prune a parameter. By default the
                matrices of the repeated blocks are pruned.
            seed: Seed of whatever the method chooses at random.
            learning_rate: Rate of trainings beside the loop; by default the optimiser's.
            clip_norm: Largest norm of their gradients; None: no clipping.
            precision: Their precision, "fp32", "bf16" or "auto".
            epoch: Steps in a pass over the data, if that is not the number of batches.
            retrain: What trains once the last mask is found: "all" or "norms_and_biases" (and the
                head). Everything else is then frozen until the last step.
            resume: A `state_dict()` to go on from. Load the model's and the optimiser's states
                first.
            **settings: The method's own settings, such as `denoisers=3`.

        Raises:
            UserError: If a setting is not allowed.
        """
        steps, sparsity, seed = as_plain([steps, sparsity, seed])
        with exchange.for_itself():
            self.method, self.target, self.total = method_of(method, settings), sparsity, steps
            check_carried(self.method)
            check_retraining_carried(self.method, retrain)
            self.retrain, self.frozen = retrain, []  # type: tuple[str, list[nn.Parameter]]
            check_steps(steps)
            check_sparsity(sparsity)
            if self.method.wants_batches():
                for name, given in (("batches", batches), ("loss", loss)):
                    if given is None:
                        raise UserError(
                            f"{name}: {self.method.name} trains beside the loop or takes "
                            f"gradients before it, and none is given; allowed: {name} as in "
                            "instant_soup.prune"
                        )
            if batches is not None:
                check_batches(batches)
            check_function("loss", loss, "(model, batch) -> scalar", needed=False)
            check_function("prunable", prunable, "(name, parameter) -> bool", needed=False)
            if epoch is not None:
                check_value("epoch", epoch, integer(1))
            bare = unwrapped(model)
            exchange.deal_out_again(bare)
            check_trainable(bare)
            chosen = choose(bare, prunable)
            check_shards(self.method, chosen, retrain)
            check_some_stay(chosen, sparsity)
            check_gradients(self.method, chosen)
            check_precision(chosen)
            optimizer = optimizer_of(optimizer, bare)
            check_optimizer(self.method, optimizer)
            group = optimizer.param_groups[0]
            if learning_rate is None:
                learning_rate = float(group.get("initial_lr", group["lr"]))  # before a warm-up
            recipe = recipe_of(
                seed, learning_rate=learning_rate, weight_decay=0.0, precision=precision,
                clip_norm=clip_norm,
            )  # fmt: skip
        check_same(
            self.method, sparsity, steps, recipe, chosen, batches,
            retrain=retrain, epoch=epoch, resumed=resume is not None,
        )  # fmt: skip
        exchange.load_first(bare)
        self.run = LoopRun(
            model, batches, loss, chosen, recipe, steps,
            optimizer=optimizer, looks_at=self.method.looks_at, epoch=epoch,
            full=any(p.dtype in HALF for p in bare.parameters()),
        )  # fmt: skip
        with own_words(self.method):
            self.method.check(sparsity, self.run.epochs)
            self.method.check_steps(sparsity, self.run)
            if retrain != ALL:
                small_parameters(bare, chosen)  # some there must be
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        keeps = type(optimizer) in ELEMENTWISE
        self._may_move = {n for n, p in chosen.items() if not (keeps and id(p) in held)}
        self._averaged = exchange.size() == 1  # whether gradients are known to be all processes'
        self._due = "after_backward"  # the call that comes next
        self._checked = True  # whether the model's zeros are known to be the mask's
        if resume is None:
            self._begin()
        else:
            self.load_state_dict(resume)

    def after_backward(self, gradients: Tensors | None = None) -> None:
        """Mask the gradients and learn from the dense ones. Call it before clipping.

        Args:
            gradients: The dense gradients by name. Give them only if hooks have already masked the
                parameters' own gradients.

        Raises:
            UserError: If `after_step` is due, the model is not that of the state, or each of
                several processes has gradients of its own.
        """
        self._check_order("after_backward")
        self._due = "after_step"
        self._check_zeros()
        self._check_averaged()
        self.inner.after_backward(self.step, gradients)

    def after_step(self) -> None:
        """Prune if it is time. Call it after each step of the optimiser.

        Raises:
            UserError: If `after_backward` is due.
        """
        self._check_order("after_step")
        self._due = "after_backward"
        self.run.step += 1
        self.inner.after_step(self.run.step - 1)
        if self._may_move:
            self._put_mask_on_again()
        self._freeze_when_settled()

    def _put_mask_on_again(self) -> None:
        """Let weights be zero that this optimiser, or another one of the loop, may have moved."""
        named = self.run.parameters()
        moved = {n: p for n, p in named.items() if n in self._may_move and p.requires_grad}
        mask = {name: self.inner.mask[name] for name in moved}
        masks.apply(mask, {name: exchange.own_part(p) for name, p in moved.items()})

    def _freeze_when_settled(self) -> None:
        """From the last mask to the last step, let only what `retrain` names train."""
        if self.step >= self.total:
            return self.thaw()
        if self.retrain == ALL or self.frozen or not self.inner.finished:
            return
        model = self.run.model
        self.frozen = freeze(model, but=small_parameters(model, self.inner.mask))
        for parameter in self.frozen:  # momentum alone would move it
            self.run.optimizer.state.pop(parameter, None)

    def thaw(self) -> None:
        """Let all train that may."""
        while self.frozen:
            self.frozen.pop().requires_grad_(True)

    def _check_order(self, call: str) -> None:
        """Raise UserError if a loop leaves one of the two calls out."""
        if call != self._due:
            raise UserError(
                f"{call}: called at step {self.step} where {self._due} is due; allowed: both once "
                "a step, after_backward before optimizer.step() and after_step after it"
            )

    def _check_zeros(self) -> None:
        """Raise UserError if the model that goes on is not the model of the state."""
        if self._checked:
            return
        self._checked = True
        with exchange.for_itself():
            for name, weight in self._weights().items():
                if weight[~self.inner.mask[name].to(weight.device)].any():
                    raise UserError(
                        f"resume: {name} is not zero where the state's mask prunes it; allowed: "
                        "the model with the weights that it had then"
                    )

    def _check_averaged(self) -> None:
        """Raise UserError if each process would go its own way, with its own gradients."""
        if self._averaged:
            return
        self._averaged = True
        gradients = [p.grad for p in self.run.model.parameters() if p.grad is not None]
        whole = [g for g in gradients if not exchange.is_sharded(g)]  # shards are of the mean
        every = exchange.gathered([float(g.double().abs().sum()) for g in whole])
        if any(own != every[0] for own in every):
            raise UserError(
                f"model: its gradients differ among {len(every)} processes; allowed: the mean of "
                "all, as torch.nn.parallel.DistributedDataParallel(model) leaves it"
            )

    @property
    def step(self) -> int:
        """How many steps the optimiser has taken."""
        return self.run.step

    @property
    def mask(self) -> Mask:
        """Name → boolean tensor of the weight's shape; True: kept now. In shards if weights are."""
        if self.run.shards == WHOLE:
            return self.inner.mask
        named = self.run.parameters()
        return {name: exchange.placed_as(named[name], m) for name, m in self.inner.mask.items()}

    @property
    def sparsity(self) -> float:
        """The share of the prunable weights that is pruned now."""
        return 1 - self.inner.kept / self.inner.prunable

    @property
    def done(self) -> bool:
        """Whether the mask is final."""
        return self.inner.finished

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on, beside the model's and the optimiser's states.

        If the model is in shards, all processes call it together, as they do for its own state.

        Returns:
            A dictionary of settings, step and CPU tensors, for `load_state_dict` or `resume=`.

        Raises:
            UserError: If `after_step` is due.
        """
        if self._due == "after_step":
            raise UserError(
                f"state_dict: called in the middle of step {self.step}; allowed: after after_step()"
            )
        kept = {f"mask.{n}": m.to(torch.uint8) for n, m in self.inner.mask.items()}
        tensors = {key: self._whole(key, t) for key, t in (kept | self.inner.tensors()).items()}
        return {**self._identity(), "step": self.step, "tensors": tensors}

    def _whole(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the state, of all shards, on the CPU, in memory of its own."""
        name = key.partition(".")[2]
        if name not in self.inner.mask:
            name = name.partition(".")[2]  # of a moment, whose own name comes before
        if self.run.shards == WHOLE or name not in self.inner.mask or not tensor.ndim:
            return tensor.detach().cpu().clone()
        shape = self.run.model.get_parameter(name).shape
        return torch.cat(self.run.shards.gather(tensor)).view(shape).cpu()

    def _weights(self) -> Tensors:
        """Name → prunable weight; of one in shards what is in this process."""
        named = self.run.parameters()
        return {name: exchange.own_part(named[name]) for name in self.inner.mask}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`. Load the model's and the optimiser's states first.

        Args:
            state: What `state_dict()` returned.

        Raises:
            UserError: If the state is of another method, sparsity, number of steps or model.
        """
        parts = state if isinstance(state, Mapping) else {}
        step, tensors = parts.get("step"), parts.get("tensors")
        if not (isinstance(tensors, Mapping) and isinstance(step, int) and step >= 0):
            raise UserError(
                "resume: not the state of a Pruner; allowed: what state_dict() returned"
            )
        for name, own in self._identity().items():
            if parts.get(name) != own:
                raise UserError(f"resume: its {name} is {parts.get(name)}; allowed: {own}")
        named = {n: p for n, p in self.run.parameters().items() if n in self.run.mask}
        found = {n: tuple(t.shape) for n, t in tensors.items() if n.startswith("mask.")}
        if found != {f"mask.{name}": tuple(p.shape) for name, p in named.items()}:
            raise UserError("resume: a state of other matrices; allowed: a state of this model")
        shards = self.run.shards
        own = {n: exchange.of_shard(t, shards) if t.ndim else t for n, t in tensors.items()}
        self._begin(step, own)

    def _begin(self, step: int = 0, tensors: Tensors | None = None) -> None:
        """Make the pruner of the method, at the start or later, and let it take hold."""
        run, tensors = self.run, tensors or {}
        self._due, self._checked = "after_backward", not tensors
        self.thaw()
        run.step = run.state.step = step
        # A search before training is done by then.
        at_once = bool(tensors) and isinstance(self.method, AtStart)
        with own_words(self.method), own_random_numbers(run.model):
            inner = FixedMask(run.mask) if at_once else self.method.pruner(run, self.target)
            self.inner: pruners.Pruner = inner
            if not tensors:
                run.take_to_model(inner.mask)
            inner.attach(run.parameters(), run.optimizer, tensors)
        self._freeze_when_settled()

    def _identity(self) -> dict[str, Any]:
        return identity_of(self.method, self.target, self.total, self.retrain)


def identity_of(method: Method, sparsity: float, steps: int, retrain: str) -> dict[str, Any]:
    """What a state must be of to be gone on from: a pruner's settings."""
    named = {"method": method.name, "sparsity": sparsity, "steps": steps, "retrain": retrain}
    return {**named, **settings_in(method)}


def optimizer_of(given: Any, model: nn.Module) -> torch.optim.Optimizer:
    """Take the optimiser out of accelerate's wrapper.

    Args:
        given: An optimiser, or accelerate's wrapper of one.
        model: The model that it must train.

    Returns:
        The optimiser.

    Raises:
        UserError: If it is no optimiser, or has none of the model's parameters.
    """
    optimizer = getattr(given, "optimizer", given)
    if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        kind = type(given).__name__
        raise UserError(
            f"optimizer: {kind} is not allowed; allowed: the loop's torch.optim.Optimizer"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise UserError(
            "optimizer: it has none of the model's parameters; allowed: the one that trains it"
        )
    return optimizer


def check_optimizer(method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser of torch that lacks the moments that the method ranks by.

    Raises:
        UserError: If it does. Of others' optimisers it is not known until they have taken a step.
    """
    if method.ranks_by_moments() and type(optimizer) in WITHOUT_MOMENTS:
        fit = " | ".join(kind.__name__ for kind in WITH_MOMENTS)
        raise UserError(
            f"optimizer: {type(optimizer).__name__} holds no second moments of gradients, by which "
            f"{method.name} ranks; allowed: {fit}, or ranking by magnitude"
        )
