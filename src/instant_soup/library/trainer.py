"""Prune inside a `transformers.Trainer`.

Example:
    soup = InstantSoupCallback(sparsity=0.8)
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[soup]).train()
"""

import inspect
import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from instant_soup.errors import UserError
from instant_soup.library.loop import Pruner, identity_of
from instant_soup.library.model import Wanted, choose, unwrapped
from instant_soup.library.run import Loss
from instant_soup.library.settings import (
    AMethod,
    as_plain,
    check_batches,
    check_carried,
    check_function,
    check_retraining_carried,
    check_sparsity,
    method_of,
)
from instant_soup.methods.base import AtStart
from instant_soup.methods.rounds import OnTheWay
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import exchange
from instant_soup.training.cost import Cost
from instant_soup.training.pruner import Tensors

declare_missing_operators()  # before Trainer is imported
from transformers import TrainerCallback  # noqa: E402

KEPT = "instant_soup.safetensors"  # in a checkpoint of the Trainer's
# What the Trainer may be told that would undo the pruning, and why.
REFUSED = {
    "load_best_model_at_end": "the best checkpoint may be older than the last prune",
    "fp16": "it scales the gradients, and leaves out steps at which they overflow",
    "fsdp": "it deals the matrices out in shards, which only a Pruner in your own loop takes",
    "deepspeed": "it cuts the matrices into pieces and steps by an optimizer of its own",
}
# Model → the callback whose training on it has begun and not ended. An exception or Ctrl-C leaves
# one here, as the Trainer then tells its callbacks nothing.
HELD: "WeakKeyDictionary[nn.Module, ref[InstantSoupCallback]]" = WeakKeyDictionary()


class InstantSoupCallback(TrainerCallback):
    """Prunes the Trainer's model within its run, by any method that trains once.

    Learning rate, clipping and precision are the Trainer's. Pruned weights get no gradient, so they
    stay exact zeros. A checkpoint of the Trainer gets a file with the mask, and with what else the
    method must remember. `resume_from_checkpoint` goes on with the same callback. After training,
    `mask` has the mask and `cost` the cost of the look-aheads. A training that breaks off leaves
    the model pruned as far as it got; the next callback on it begins anew, and `release` lets it
    train without one.
    """

    def __init__(
        self,
        method: AMethod = "isp",
        *,
        sparsity: float = 0.8,
        prunable: Wanted | None = None,
        batches: Iterable[Any] | None = None,
        loss: Loss | None = None,
        retrain: str = "all",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """Check the settings that can be checked before training.

        Args:
            method: As in `instant_soup.prune`; the method must train only once.
            sparsity: Share of the prunable weights to prune, between 0 and 1.
            prunable: `prunable(name, parameter)` says whether to prune a parameter.
            batches: Batches for look-aheads; by default the training data, collated by the Trainer.
            loss: `loss(model, batch)` of look-aheads; by default the Trainer's own, with a
                subclass's `compute_loss`, `compute_loss_func` and label smoothing.
            retrain: What trains once the last mask is found, "all" or "norms_and_biases".
            seed: Seed of whatever the method chooses at random.
            **settings: The method's own settings, such as `denoisers=3`.

        Raises:
            UserError: If a setting is not allowed; here, or when training begins.
        """
        sparsity, seed = as_plain([sparsity, seed])
        self.method = method_of(method, settings)
        check_carried(self.method)
        check_retraining_carried(self.method, retrain)
        self.retrain = retrain
        check_sparsity(sparsity)
        self.sparsity, self.prunable, self.batches, self.seed = sparsity, prunable, batches, seed
        if batches is not None:
            check_batches(batches)
        check_function("loss", loss, "(model, batch) -> scalar", needed=False)
        check_function("prunable", prunable, "(name, parameter) -> bool", needed=False)
        self.loss = loss
        self.pruner: Pruner | None = None
        self.dense: Tensors = {}  # gradients before they are masked
        self.hooks: dict[str, Any] = {}  # of matrices that train
        self.training: Any = None  # the Trainer's state, which is another at each call of train()

    @property
    def mask(self) -> Mask:
        """Name → boolean tensor of the weight's shape; True: kept. Empty before training."""
        return self.pruner.mask if self.pruner else {}

    @property
    def cost(self) -> Cost:
        """The cost of training beside the run."""
        return self.pruner.run.cost if self.pruner else Cost()

    def on_init_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Release the model from a training that broke off, before an optimiser takes its pick."""
        self.release()
        if (other := holder(unwrapped(trainer["model"]))) is not None:
            other.release()

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Choose the matrices, begin to prune, and restore the pruning of a checkpoint.

        Raises:
            UserError: If the Trainer's arguments would undo the pruning, the checkpoint is of
                other settings, or another callback prunes in the same training.
        """
        model, loader = unwrapped(trainer["model"]), trainer["train_dataloader"]
        for name, why in REFUSED.items():
            if getattr(args, name, None):
                raise UserError(f"{name}: not allowed beside pruning, as {why}; allowed: false")
        batches = self.batches
        if batches is None and hasattr(loader.dataset, "__len__"):
            batches = DataLoader(
                loader.dataset, args.per_device_train_batch_size, shuffle=True,
                collate_fn=loader.collate_fn,
            )  # fmt: skip
        self._take_over(model, state)
        loss = self.loss or trainers_loss()
        self.pruner = Pruner(
            model, trainer["optimizer"], method=self.method, steps=state.max_steps,
            sparsity=self.sparsity, batches=batches, loss=loss, prunable=self.prunable,
            seed=self.seed, learning_rate=args.learning_rate,
            clip_norm=args.max_grad_norm or None, precision="bf16" if args.bf16 else "fp32",
            epoch=_epoch(args, loader), retrain=self.retrain,
            resume=self._found(args, state, model) if state.global_step else None,
        )  # fmt: skip
        if state.global_step:
            self._check_resumed(self.pruner)
        self._hold(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Take hold of matrices that were frozen until now."""
        assert self.pruner is not None
        if len(self.hooks) < len(self.pruner.mask):
            self._hold(unwrapped(trainer["model"]))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Pass on the dense gradients, which hooks gathered before clipping."""
        assert self.pruner is not None
        # Each process has its own batches' gradients here; the parameters have the means.
        self.pruner.after_backward(exchange.means(self.dense, self.pruner.mask))
        self.dense = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Prune if it is time."""
        assert self.pruner is not None
        self.pruner.after_step()

    def on_save(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Save the mask beside the weights, whose zeros may be others too, and what it rests on."""
        assert self.pruner is not None
        if state.is_world_process_zero:
            tensors = self.pruner.state_dict()["tensors"]
            save_file(
                {n: t.contiguous() for n, t in tensors.items()}, _checkpoint(args, state) / KEPT
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Remove the hooks; warn if training ended before the last prune."""
        self.release()
        HELD.pop(unwrapped(trainer["model"]), None)
        if self.pruner is not None and not self.pruner.done:
            reached = f"{self.pruner.sparsity:.0%} of {self.sparsity:.0%}"
            warnings.warn(f"training ended early: pruned to {reached}", stacklevel=2)

    def _found(self, args: Any, state: Any, model: nn.Module) -> dict[str, Any]:
        """The pruner's state at a checkpoint of the Trainer's: its file, or the weights' zeros."""
        identity = identity_of(self.method, self.sparsity, state.max_steps, self.retrain)
        file = (resumed_from() or _checkpoint(args, state)) / KEPT
        if file.exists():
            tensors = load_file(file)
        elif self.method.remembers:
            raise UserError(
                f"resume_from_checkpoint: no {file}, without which {self.method.name} cannot go on"
            )
        else:
            matrices = choose(model, self.prunable)
            tensors = {f"mask.{n}": (w != 0).to(torch.uint8).cpu() for n, w in matrices.items()}
        return {**identity, "step": state.global_step, "tensors": tensors}

    def _check_resumed(self, pruner: Pruner) -> None:
        """UserError when a checkpoint's zeros are not those of these settings."""
        wanted, method, step = self.sparsity, self.method, pruner.step
        if isinstance(method, OnTheWay):
            targets = method.sparsities(self.sparsity)
            done = getattr(pruner.inner, "done", 0)
            wanted = [0.0, *targets][done]
            if not method.adjusts and done < len(targets):
                return
        elif not isinstance(method, AtStart):
            return
        kept = masks.keep_count(dict(pruner.mask), wanted)
        if (found := masks.count(pruner.mask)[0]) != kept:
            raise UserError(
                f"resume_from_checkpoint: {found} of the prunable weights are not zero at step "
                f"{step}; with these settings it would be {kept}"
            )

    def _hold(self, model: nn.Module) -> None:
        """Let no gradient reach the pruned weights, clipping included."""
        assert self.pruner is not None
        for name, parameter in model.named_parameters():
            if name in self.pruner.mask and parameter.requires_grad and name not in self.hooks:
                hook = parameter.register_hook(lambda g, name=name: self._masked(name, g))
                self.hooks[name] = hook

    def _masked(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient without the pruned weights' part; added up as it was, where that is wanted."""
        assert self.pruner is not None
        if self.pruner.inner.wants_gradients(self.pruner.step):
            before = self.dense.get(name)
            self.dense[name] = gradient.clone() if before is None else before + gradient
        factor = self.pruner.inner.factor(name)
        return gradient if factor is None else gradient * factor.to(gradient.dtype)

    def release(self) -> None:
        """Let gradients reach all weights again, and all train that may.

        The end of training does so. Call it to train on without pruning after a training that an
        exception or Ctrl-C has broken off.
        """
        for hook in self.hooks.values():
            hook.remove()
        self.hooks, self.dense = {}, {}
        if self.pruner is not None:
            self.pruner.thaw()

    def _take_over(self, model: nn.Module, state: Any) -> None:
        """Release the model from a callback whose training broke off.

        Raises:
            UserError: If that callback's training is this one.
        """
        self.release()
        other = holder(model)
        if other is not None and other is not self:
            if other.training is state:
                raise UserError("callbacks: two InstantSoupCallbacks in one Trainer; allowed: one")
            frozen = other.pruner is not None and other.pruner.frozen
            other.release()
            if frozen:  # an optimiser takes what may train, and there is one by now
                raise UserError(
                    "callbacks: a training that broke off had frozen weights of this model, so the "
                    "optimizer is without them; allowed: a new Trainer"
                )
        HELD[model], self.training = ref(self), state


def holder(model: nn.Module) -> InstantSoupCallback | None:
    """The callback whose training on a model has begun and not ended, if there is one."""
    return HELD[model]() if model in HELD else None


def trainers_calls() -> Iterator[dict[str, Any]]:
    """Iterate over the local names of the calling Trainer's methods, the innermost first.

    A callback gets neither the Trainer nor where it goes on from, so both are looked for there.
    """
    from transformers import Trainer

    frame = inspect.currentframe()
    while frame is not None:
        local, frame = frame.f_locals, frame.f_back
        if isinstance(local.get("self"), Trainer):
            yield local


def resumed_from() -> Path | None:
    """The checkpoint that the calling Trainer goes on from, wherever it lies; None if unknown."""
    given = (local.get("resume_from_checkpoint") for local in trainers_calls())
    return next((Path(folder) for folder in given if isinstance(folder, str | Path)), None)


def trainers_loss() -> Loss | None:
    """The loss as the calling Trainer computes it; None if no Trainer is calling."""
    trainer: Any = next((local["self"] for local in trainers_calls()), None)
    if trainer is None:
        return None

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        arguments = trainer.args
        counted = arguments.average_tokens_across_devices
        arguments.average_tokens_across_devices = False  # this process's batch is all there is
        try:
            _, items = trainer.get_batch_samples(iter([batch]), 1, arguments.device)
            found: torch.Tensor = trainer.compute_loss(model, batch, num_items_in_batch=items)
        finally:
            arguments.average_tokens_across_devices = counted
        return found

    return loss


def _epoch(args: Any, loader: Any) -> int | None:
    """Steps of the optimiser in a pass over the data, where that is known."""
    try:
        return max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
    except TypeError:
        return None


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder of the checkpoint at this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
