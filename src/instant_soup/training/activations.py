"""What the prunable matrices multiply: statistics of their inputs over some batches.

This takes one forward pass of the network as it is, which the run's cost counts. Inputs are caught
where torch multiplies them, because `nn.MultiheadAttention` calls neither its fused in_proj nor its
out_proj as a module. A token is a row. Tokens that an attention mask leaves out are no rows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from instant_soup.errors import UserError
from instant_soup.training import exchange

if TYPE_CHECKING:
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

FORWARD = 1  # forward passes that a batch takes


def mean_squares(run: "Run", batches: int) -> "Weights":
    """The mean square of each input feature, over tokens.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.

    Returns:
        Name of a prunable matrix → one number for each input; fp32, on the CPU.
    """
    return _means(run, batches, lambda x: x.square().sum(0))


def second_moments(run: "Run", batches: int) -> "Weights":
    """The mean of x xᵀ over tokens x.

    Args:
        run: The run whose network and batches are used.
        batches: How many batches.

    Returns:
        Name of a prunable matrix → inputs × inputs; fp32, on the CPU.
    """
    return _means(run, batches, lambda x: x.T @ x)


def _means(run: "Run", batches: int, summed: Callable[[torch.Tensor], torch.Tensor]) -> "Weights":
    """Means over tokens of what `summed` adds up over the rows of an input; by name.

    UserError where a matrix is no linear map's, or the batches do not reach it.
    """
    totals: Weights = {}
    rows: dict[str, int] = {}
    tokens: torch.Tensor | None = None

    def see(x: torch.Tensor, weight: torch.Tensor) -> None:
        if (name := names.get(id(weight))) is not None:
            x = _real(x, tokens, name, name in swapped)
            total = summed(x)
            totals[name] = totals[name] + total if name in totals else total
            rows[name] = rows.get(name, 0) + len(x)

    with run.at_rest(batches, FORWARD) as (network, each), torch.no_grad():
        names = {id(p): name for name, p in network.named_parameters() if name in run.mask}
        swapped = _sequence_first(network)
        for batch in each:
            tokens = _attended(batch)
            with watched(see):
                run.loss(network, batch)
    if exchange.size() > 1:
        counts = exchange.gathered(rows)
        rows = {name: sum(own.get(name, 0) for own in counts) for name in run.mask}
        totals = exchange.summed(totals, run.mask)
    if missing := [name for name in run.mask if not rows.get(name)]:
        raise UserError(
            f"prunable: {missing[0]} is the weight of no linear map that the loss of the batches "
            "reaches; allowed: those alone"
        )
    # In place, as second moments may take all the memory that there is.
    return {name: totals[name].div_(rows[name]).cpu() for name in run.mask}


@contextmanager
def watched(see: Callable[[torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Tell `see` of the inputs and weights of all linear maps within this context."""
    linear, fast = functional.linear, torch.backends.mha.get_fastpath_enabled()

    def watched(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        see(input, weight)
        return linear(input, weight, bias)

    functional.linear = watched  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel, in which nothing can be seen
    try:
        yield
    finally:
        functional.linear = linear
        torch.backends.mha.set_fastpath_enabled(fast)


def _sequence_first(network: nn.Module) -> set[str]:
    """The weights whose inputs come as tokens × rows, whatever the module is given."""
    return {
        f"{name}.{own}".removeprefix(".")
        for name, module in network.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for own, _ in module.named_parameters()
    }


def _attended(batch: Any) -> torch.Tensor | None:
    """Which tokens of a batch there are (rows × tokens), where it says so."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def _real(x: torch.Tensor, tokens: torch.Tensor | None, name: str, swapped: bool) -> torch.Tensor:
    """The rows of an input that are real tokens, in fp32."""
    rows = x.reshape(-1, x.shape[-1]).float()
    if tokens is None or (x.ndim == 2 and len(x) == len(tokens)):  # one a row: pooled
        return rows
    if len(rows) != tokens.numel():
        raise UserError(
            f"batches: {name} multiplies {len(rows)} rows, and the attention mask has "
            f"{tokens.numel()} tokens; allowed: a row for each token"
        )
    return rows[(tokens.T if swapped else tokens).to(x.device).flatten()]
