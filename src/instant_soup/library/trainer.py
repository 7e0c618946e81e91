"""Instant Soup Pruning inside `transformers.Trainer`, for those who train with one.

soup = InstantSoupCallback(sparsity=0.8)
Trainer(model=model, args=arguments, train_dataset=data, callbacks=[soup]).train()
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from instant_soup.errors import UserError
from instant_soup.library import prune
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.sparsity import masks
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

declare_missing_operators()  # before Trainer is imported
from transformers import TrainerCallback  # noqa: E402


class InstantSoupCallback(TrainerCallback):
    """Prunes the Trainer's model within its run, by the rounds of `instant_soup.prune`.

    The arguments are those of `prune`; learning rate, clipping and precision are the Trainer's.
    A look-ahead takes batches of the training data as the Trainer collates them, or `batches`, and
    `loss(model, batch)`, the model's own where none is given. Pruned weights get no gradient, so
    they stay exact zeros; a checkpoint of the Trainer's therefore has its mask in it, and
    `resume_from_checkpoint` goes on. Afterwards `mask` and `cost` (of the look-aheads) are here.

    UserError for settings that cannot be: here, or when training begins.
    """

    def __init__(
        self,
        *,
        sparsity: float = 0.8,
        compression_rate: float = 0.2,
        mask_finding: float = 0.3,
        denoisers: int = 3,
        look_ahead: int = 10,
        combine: str = "union",
        score: str = "magnitude",
        learning_rate_range: tuple[float, float] = (0.5, 5.0),
        weight_decay_range: tuple[float, float] = (0.0, 0.1),
        prunable: Callable[[str, torch.Tensor], bool] | None = None,
        batches: Iterable[Any] | None = None,
        loss: prune.Loss | None = None,
        seed: int = 0,
    ) -> None:
        self.chosen = (
            sparsity,
            compression_rate,
            mask_finding,
            denoisers,
            look_ahead,
            combine,
            score,
        )
        prune.plan_rounds(10**9, *self.chosen)  # refuses what no number of steps could mend
        self.settings = {
            **{"learning_rate_range": list(learning_rate_range), "batch_size": 1, "subset": 1.0},
            **{"weight_decay_range": list(weight_decay_range), "warmup": 0.0, "seed": seed},
        }
        self.prunable, self.batches = prunable, batches
        self.loss = loss or (lambda model, batch: model(**batch).loss)
        self.mask: masks.Mask = {}
        self.cost = Cost()
        self.hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Choose the matrices, plan the rounds, and hold what a checkpoint has pruned."""
        model, loader = trainer["model"], trainer["train_dataloader"]
        if args.load_best_model_at_end or args.fp16:
            name = "fp16" if args.fp16 else "load_best_model_at_end"
            raise UserError(f"{name}: true is not allowed beside pruning; allowed: false")
        if args.world_size > 1:
            raise UserError(
                f"processes: {args.world_size} are not allowed beside pruning, as each would find "
                "a mask of its own; allowed: 1"
            )
        self.cost = Cost()
        self.rounds = prune.plan_rounds(state.max_steps, *self.chosen)
        self.settings |= {
            **{"learning_rate": args.learning_rate, "weight_decay": args.weight_decay},
            **{"clip_norm": args.max_grad_norm or float("inf")},
            **{"precision": "bf16" if args.bf16 else "fp32"},
        }
        if self.batches is None and not hasattr(loader.dataset, "__len__"):
            raise UserError(
                "batches: give some for look-aheads: the data has no length to draw from"
            )
        self.source = self.batches if self.batches is not None else DataLoader(
            loader.dataset, args.per_device_train_batch_size, shuffle=True,
            collate_fn=loader.collate_fn,
        )  # fmt: skip
        matrices = prune.choose(model, self.prunable)
        self.mask, self.done = masks.full(matrices), 0
        if state.global_step > 0:
            self.done = sum(end <= state.global_step for end in self.rounds.ends)
            self.mask = {name: w.detach().cpu() != 0 for name, w in matrices.items()}
            kept = masks.keep_count(matrices, [0.0, *self.rounds.sparsities][self.done])
            if masks.count(self.mask)[0] != kept:
                raise UserError(
                    f"resume_from_checkpoint: {masks.count(self.mask)[0]} of the prunable weights "
                    f"are not zero at step {state.global_step}; by these settings it is {kept}"
                )
        self._hold(model)
        self._prune_when_due(state.global_step, model, trainer["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Prune where a round ends."""
        self._prune_when_due(state.global_step, trainer["model"], trainer["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """Leave the model without hooks; say so where training ended before the last prune."""
        self._release()
        if self.done < len(self.rounds.ends):
            reached = f"{masks.sparsity(self.mask):.0%} of {self.rounds.sparsities[-1]:.0%}"
            warnings.warn(f"training ended early: pruned to {reached}", stacklevel=2)

    def _hold(self, model: nn.Module) -> None:
        """Let no gradient reach the pruned weights, clipping included."""
        self._release()
        parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
        self._remember_factors(parameters)
        self.hooks = [
            parameters[name].register_hook(lambda g, name=name: g * self.factors[name])
            for name in self.mask
            if parameters[name].requires_grad
        ]

    def _release(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def _remember_factors(self, parameters: dict[str, torch.Tensor]) -> None:
        self.factors = {name: kept.to(parameters[name]) for name, kept in self.mask.items()}

    def _prune_when_due(self, step: int, model: nn.Module, optimizer: Any) -> None:
        while self.done < len(self.rounds.ends) and self.rounds.ends[self.done] <= step:
            parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
            with torch.random.fork_rng():
                self.mask = prune.find_mask(
                    model, self._state(parameters, optimizer), self.mask, self.source, self.loss,
                    self.rounds, self.done, self.settings, self.cost,
                )  # fmt: skip
            masks.apply(self.mask, parameters)
            self._remember_factors(parameters)
            for name, factor in self.factors.items():
                # Stale momentum would move pruned weights again at the next step.
                for moment in optimizer.state.get(parameters[name], {}).values():
                    if isinstance(moment, torch.Tensor) and moment.shape == factor.shape:
                        moment.masked_fill_(factor == 0, 0)
            self.done += 1

    def _state(self, parameters: dict[str, torch.Tensor], optimizer: Any) -> State:
        """The prunable weights with the second moments that the Trainer's optimizer has of them."""
        weights = {name: parameters[name].detach().cpu() for name in self.mask}
        found = {n: optimizer.state.get(parameters[n], {}).get("exp_avg_sq") for n in weights}
        moments = {name: v.detach().cpu() for name, v in found.items() if v is not None}
        return State(weights, second_moments=moments)
