"""Prune any PyTorch model in one call, by any method: the pipeline's own, without the pipeline.

pruned = instant_soup.prune(model, loader, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
                            steps=1000, learning_rate=1e-4, sparsity=0.8)
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instant_soup.errors import UserError
from instant_soup.library.pruned import Pruned
from instant_soup.library.run import LibraryRun, Loss, Validate, choose
from instant_soup.library.settings import (
    AMethod,
    check_sparsity,
    check_steps,
    method_of,
    own_words,
    recipe_of,
)
from instant_soup.sparsity import masks
from instant_soup.training.checkpoints import Store


def prune(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    sparsity: float = 0.8,
    method: AMethod = "isp",
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    clip_norm: float = 1.0,
    precision: str = "auto",
    prunable: Callable[[str, torch.Tensor], bool] | None = None,
    checkpoint: str | Path | None = None,
    validate: Validate | None = None,
    seed: int = 0,
    **settings: Any,
) -> Pruned:
    """Train a model for `steps` steps and prune it by a method: before, on the way or throughout.

    `batches` can be iterated again and again, as a DataLoader or a list; tensors in a batch (also
    in dicts, lists and tuples) are moved to the model's device. `loss(model, batch)` is a scalar.
    The learning rate falls linearly to zero.

    `method` is the name of a row of the pipeline's tables (docs/settings.md), or an object of its
    class as it stands (`SNIP(batches=4)`; what is None there is filled in), or a function
    `(weights, gradients, state) -> scores`, whose largest scores stay at the ends of ISP's rounds.
    `settings` are the method's own: of ISP `compression_rate`, `look_ahead`, `denoisers`, … Its
    rounds take a share `mask_finding` of the steps together; with
    `mask_finding=None` they last as `calibration`, in epochs, says. `validate(model)`, a score that
    is better the higher, is for methods that choose among networks.

    What is pruned: the matrices of the repeated blocks, `nn.MultiheadAttention` included; in a
    model without blocks, all linear maps but the last. `prunable(name, parameter)` chooses
    otherwise. With a folder `checkpoint`, what is trained is kept there until the run is finished,
    and an equal call goes on from there. Settings and the pre-trained matrices tell calls apart,
    data and loss do not: a run with others needs another folder.

    UserError for settings that cannot be, before any training.
    """
    chosen = method_of(method, settings)
    check_steps(steps)
    check_sparsity(sparsity)
    recipe = recipe_of(
        seed, learning_rate=learning_rate, weight_decay=weight_decay, warmup=warmup,
        clip_norm=clip_norm, precision=precision,
    )  # fmt: skip
    if chosen.validates and validate is None:
        raise UserError(
            f"validate: {chosen.name} chooses among networks by a score; allowed: a function "
            "(model) -> score"
        )
    store = None if checkpoint is None else Store(Path(checkpoint))
    run = LibraryRun(
        model, batches, loss, choose(model, prunable), chosen.recipe(recipe), steps,
        validate=validate, store=store, looks_at=chosen.looks_at,
    )  # fmt: skip
    with own_words(chosen):
        chosen.check(sparsity, run.epochs)
        chosen.run(run, sparsity)
    run.network(run.state, run.recipe).eval()
    if store is not None:
        store.remove_used()
    reached = masks.sparsity(run.mask)
    return Pruned(model, run.mask, asdict(run.cost), chosen.name, reached, seed)
