"""Prune any PyTorch model in one call, by any method: the pipeline's own, without the pipeline.

pruned = instant_soup.prune(model, loader, loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
                            steps=1000, learning_rate=1e-4, sparsity=0.8)
"""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from instant_soup.errors import UserError
from instant_soup.library.model import (
    Wanted,
    check_gradients,
    check_single_process,
    check_trainable,
    choose,
    in_full_width,
    unwrapped,
)
from instant_soup.library.pruned import Pruned
from instant_soup.library.run import LibraryRun, Loss, Validate
from instant_soup.library.settings import (
    AMethod,
    check_batches,
    check_function,
    check_sparsity,
    check_steps,
    method_of,
    own_words,
    recipe_of,
    store_of,
)
from instant_soup.sparsity import masks


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
    clip_norm: float | None = 1.0,
    precision: str = "auto",
    prunable: Wanted | None = None,
    checkpoint: str | Path | None = None,
    validate: Validate | None = None,
    seed: int = 0,
    **settings: Any,
) -> Pruned:
    """Train a model for `steps` steps and prune it by a method: before, on the way or throughout.

    `batches` can be iterated again and again, as a DataLoader or a list; tensors in a batch (also
    in dicts, lists and tuples) are moved to the model's device. `loss(model, batch)` is a scalar.
    The learning rate falls linearly to zero, or in the `cycles` of a method that has some.

    `method` is the name of a row of the pipeline's tables (docs/settings.md), or an object of its
    class as it stands (`SNIP(batches=4)`; what is None there is filled in), or a function
    `(weights, gradients, state) -> scores`, whose largest scores stay at the ends of ISP's rounds.
    `settings` are the method's own: of ISP `compression_rate`, `look_ahead`, `denoisers`, … Its
    rounds take a share `mask_finding` of the steps together; with
    `mask_finding=None` they last as `calibration`, in epochs, says. `validate(model)`, a score that
    is better the higher, is for methods that choose among networks.

    What is pruned: the matrices of the repeated blocks, `nn.MultiheadAttention` included; in a
    model without blocks, all linear maps but the last. `prunable(name, parameter)` chooses
    otherwise. Weights of half the width of fp32 train in fp32 and come back in their own type.

    With a folder `checkpoint`, what is trained is kept there until the run is finished,
    and an equal call goes on from there. Settings and the pre-trained matrices tell calls apart,
    data and loss do not: a run with others needs another folder.

    UserError for settings that cannot be, before any training.
    """
    chosen = method_of(method, settings)
    check_steps(steps)
    check_sparsity(sparsity)
    check_batches(batches)
    check_function("loss", loss, "(model, batch) -> scalar")
    check_function("prunable", prunable, "(name, parameter) -> bool", needed=False)
    check_function("validate", validate, "(model) -> score", needed=False)
    if chosen.validates and validate is None:
        raise UserError(
            f"validate: {chosen.name} chooses among networks by a score; allowed: a function "
            "(model) -> score"
        )
    recipe = recipe_of(
        seed, learning_rate=learning_rate, weight_decay=weight_decay, warmup=warmup,
        clip_norm=clip_norm, precision=precision,
    )  # fmt: skip
    check_single_process()
    bare = unwrapped(model)
    check_trainable(bare)
    check_gradients(chosen, choose(bare, prunable))  # while the model is as it was
    store = store_of(checkpoint)
    with in_full_width(bare) as narrow, own_words(chosen):
        if narrow and precision == "auto":
            recipe = replace(recipe, precision="bf16")  # computes as it did
        run = LibraryRun(
            model, batches, loss, choose(bare, prunable), chosen.recipe(recipe), steps,
            validate=validate, store=store, looks_at=chosen.looks_at, full=narrow,
        )  # fmt: skip
        chosen.check(sparsity, run.epochs)
        chosen.run(run, sparsity)
        run.network(run.state, run.recipe)
    model.eval()
    if store is not None:
        store.remove_used()
    reached = masks.sparsity(run.mask)
    return Pruned(model, run.mask, asdict(run.cost), chosen.name, reached, seed)
