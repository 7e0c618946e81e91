"""What trains once the last mask is found: everything, or few parameters, or these and adapters.

PERP (Zimmer et al. 2023, arXiv 2312.15230): few parameters suffice for a pruned network to recover.
An adapter turns a matrix W into W + (α / r) · M ⊙ (BA), where B has r columns and A has r rows. So
what is pruned stays zero when the adapter is merged. M is the mask, not W ≠ 0: a kept weight may
happen to be zero.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from instant_soup.config.sections import ALL, MASK_LORA, NORMS_AND_BIASES, Recipe
from instant_soup.errors import UserError
from instant_soup.models import matrices
from instant_soup.seeds import generator
from instant_soup.sparsity.masks import Mask
from instant_soup.training.pruner import FixedMask, Parameters, Pruner, Tensors
from instant_soup.training.state import State, Weights

KEPT = ("step", "exp_avg", "exp_avg_sq")  # of an adapter, in AdamW's state
ADAPTERS = 4000  # keeps their draws apart from those of denoisers and of soups' networks


def small_parameters(network: nn.Module, prunable: Collection[str]) -> set[str]:
    """Names of what trains in any case: vectors (norms, biases) and the head, unless frozen.

    Raises:
        UserError: If there is none.
    """
    head = {id(weight) for weight in matrices.head(network, prunable).values()}
    found = {
        name
        for name, p in network.named_parameters()
        if p.requires_grad and name not in prunable and (p.ndim <= 1 or id(p) in head)
    }
    if not found:
        raise UserError(
            "training.retrain: this network has no biases, norms or head that may train; "
            f"allowed: {ALL}"
        )
    return found


def pruner_of(recipe: Recipe, mask: Mask, weights: Weights) -> FixedMask:
    """The pruner of a last phase that begins with these weights."""
    if recipe.retrain != MASK_LORA:
        return FixedMask(mask)
    return MaskLora(mask, weights, recipe.lora_rank, recipe.lora_alpha, recipe.seed)


def at_its_rate(recipe: Recipe) -> Recipe:
    """The recipe with the learning rate of its last phase."""
    if not recipe.partial:
        return recipe
    return replace(recipe, learning_rate=recipe.learning_rate * recipe.retrain_rate)


@contextmanager
def only_some(network: nn.Module, state: State, pruner: Pruner, recipe: Recipe) -> Iterator[None]:
    """Within this, only what `recipe.retrain` names trains; other moments are dropped."""
    if not recipe.partial:
        yield
        return
    small = small_parameters(network, pruner.mask)
    trained = small | (set(pruner.mask) if recipe.retrain == MASK_LORA else set())
    frozen = freeze(network, trained)
    for moments in (state.first_moments, state.second_moments):
        for name in moments.keys() - small:
            del moments[name]
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        if isinstance(pruner, MaskLora):
            pruner.release()


def freeze(network: nn.Module, but: Collection[str]) -> list[nn.Parameter]:
    """Freeze all parameters but some, by name; return those that it froze."""
    frozen = [p for n, p in network.named_parameters() if p.requires_grad and n not in but]
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = None
    return frozen


def step_flops(
    recipe: Recipe, in_prunable: float, others: float, kept: int, prunable: int
) -> tuple[float, float]:
    """FLOPs of a training step.

    Frozen matrices need no gradient, a third of their part. An adapter's gradient is made of its
    matrix's, so it saves nothing; the product BA and its two gradients are added.

    Args:
        recipe: Says what trains.
        in_prunable: FLOPs of a forward pass in prunable matrices.
        others: FLOPs of a forward pass elsewhere.
        kept: Number of weights that are kept.
        prunable: Number of prunable weights.

    Returns:
        Dense FLOPs, and those without the pruned weights' multiply-adds.
    """
    multiplied = in_prunable * kept / prunable
    dense, sparse = 3 * (in_prunable + others), 3 * (multiplied + others)
    if recipe.retrain == NORMS_AND_BIASES:
        return dense - in_prunable, sparse - multiplied
    if recipe.retrain == MASK_LORA:
        return dense + 6 * recipe.lora_rank * prunable, sparse + 6 * recipe.lora_rank * kept
    return dense, sparse


def merged(
    weight: torch.Tensor, kept: torch.Tensor | None, b: torch.Tensor, a: torch.Tensor, scale: float
) -> torch.Tensor:
    """W + scale · M ⊙ (BA).

    Args:
        weight: W, with two dimensions or more; those behind the first are taken as one.
        kept: M in numbers, shaped like W; None if nothing is pruned.
        b: First dimension of W × rank.
        a: Rank × the other dimensions of W.
        scale: Factor on the change.

    Returns:
        A new tensor shaped like W.
    """
    change = (b @ a).mul_(scale).view_as(weight)
    return weight + (change if kept is None else change.mul_(kept))


class MaskLora(FixedMask):
    """A fixed mask under which each matrix changes by an adapter; AdamW trains these, undecayed.

    The parameters always hold the merged matrices, so whoever looks at the network sees it as it
    is. A matrix's gradient is dropped as soon as its adapter's are made of it. B starts at zero, A
    uniformly in ±1/√inputs.
    """

    def __init__(self, mask: Mask, weights: Weights, rank: int, alpha: float, seed: int) -> None:
        """Take a copy of the weights that the phase begins with: the adapters change these."""
        super().__init__(mask)
        self.base = {name: weights[name].clone() for name in mask}
        self.rank, self.scale, self.seed = rank, alpha / rank, seed
        self.adapters: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # B and A, by name
        self.hooks: list = []

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with adapters that change nothing, or go on with those of a checkpoint."""
        super().attach(parameters, optimizer, tensors)
        for number, (name, parameter) in enumerate(self.parameters.items()):
            if not parameter.requires_grad:
                continue
            self.base[name] = self.base[name].to(parameter.device)
            drawn = self._drawn(number, parameter)
            pair = tuple(
                tensors.get(f"lora.{part}.{name}", new).to(parameter).requires_grad_()
                for part, new in zip("ba", drawn, strict=True)
            )
            self.adapters[name] = pair[0], pair[1]
            self.hooks.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda p, name=name: self._to_adapter(name, p)
                )
            )
        every = [tensor for pair in self.adapters.values() for tensor in pair]
        if every:
            optimizer.add_param_group({"params": every, "weight_decay": 0.0})
        for key, tensor in self._named():
            if f"{key}.step" in tensors:
                kept = {k: tensors[f"{key}.{k}"].to(tensor.device) for k in KEPT}
                optimizer.state[tensor] = kept

    def after_step(self, step: int) -> None:
        """Merge the adapters as they are now."""
        with torch.no_grad():
            for name, (b, a) in self.adapters.items():
                found = merged(self.base[name], self.factors.get(name), b, a, self.scale)
                self.parameters[name].copy_(found)

    def tensors(self) -> Tensors:
        """The adapters, and their moments."""
        held = super().tensors()
        for key, tensor in self._named():
            held[key] = tensor.detach()
            held |= {f"{key}.{k}": v for k, v in self.optimizer.state.get(tensor, {}).items()}
        return held

    def release(self) -> None:
        """Remove the hooks from the network."""
        while self.hooks:
            self.hooks.pop().remove()

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, pair in self.adapters.items():
            for part, tensor in zip("ba", pair, strict=True):
                yield f"lora.{part}.{name}", tensor

    def _drawn(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """B and A of a matrix, as they start."""
        inputs = like[0].numel()
        draws = torch.rand(
            self.rank, inputs, generator=generator(self.seed, ADAPTERS, number), dtype=torch.float64
        )
        return torch.zeros(len(like), self.rank), (2 * draws - 1) / inputs**0.5

    def _to_adapter(self, name: str, parameter: torch.Tensor) -> None:
        """Make an adapter's gradients of its matrix's, and drop that."""
        assert parameter.grad is not None
        b, a = self.adapters[name]
        gradient, parameter.grad = parameter.grad, None
        if name in self.factors:
            gradient = gradient * self.factors[name]
        gradient = gradient.flatten(1) * self.scale
        with torch.no_grad():
            b.grad, a.grad = gradient @ a.T, b.T @ gradient
