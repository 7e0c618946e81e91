"""Prune any PyTorch model in one call, by any method of the pipeline.

Example:
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
    check_some_stay,
    check_trainable,
    check_whole,
    choose,
    in_full_width,
    unwrapped,
)
from instant_soup.library.pruned import Pruned
from instant_soup.library.run import LibraryRun, Loss, Validate, own_random_numbers
from instant_soup.library.settings import (
    AMethod,
    as_plain,
    check_batches,
    check_function,
    check_same,
    check_sparsity,
    check_steps,
    method_of,
    own_words,
    recipe_of,
    retraining_of,
    store_of,
)
from instant_soup.sparsity import masks
from instant_soup.training import exchange
from instant_soup.training.retraining import small_parameters


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
    retrain: str = "all",
    retrain_rate: float | None = None,
    lora_rank: int | None = None,
    lora_alpha: float | None = None,
    seed: int = 0,
    **settings: Any,
) -> Pruned:
    """Train a model and prune it by a method: before training, on the way or throughout.

    Several processes (torchrun, accelerate) call this with the same settings, each with a model and
    batches of its own: a step takes the mean of their gradients. All begin with the first one's
    weights, and end with one network and one mask. Denoisers are shared out over the processes.

    By default the matrices of the repeated blocks are pruned, those of `nn.MultiheadAttention`
    included. In a model without blocks these are all linear maps but the last. bf16 and fp16
    weights train in fp32 and come back in their own type.

    Args:
        model: Any module; torch.compile's and DataParallel's wrappers are fine. It is trained in
            place, on the device that it is on.
        batches: A DataLoader, a list, or anything else that can be iterated again and again.
            Tensors in a batch (also in dicts, lists and tuples) are moved to the model's device.
        loss: `loss(model, batch)` returns a scalar tensor with a gradient.
        steps: The optimiser's steps in the whole training.
        learning_rate: AdamW's rate at the start. It falls linearly to zero, or in `cycles` if the
            method has that setting.
        sparsity: Share of the prunable weights to prune, between 0 and 1.
        method: The name of a row of the tables (docs/settings.md); or an object of a method's
            class, such as `SNIP(batches=4)`, where None means the default; or a function `(weights,
            gradients, state) -> scores`, whose largest scores stay at the end of each of ISP's
            rounds.
        weight_decay: AdamW's decay, on matrices only.
        warmup: Share of the steps over which the rate rises from zero.
        clip_norm: Largest norm of the gradient; None: no clipping.
        precision: "fp32", "bf16", or "auto": bf16 where the hardware multiplies it.
        prunable: `prunable(name, parameter)` says whether to prune a parameter.
        checkpoint: A folder in which the training is kept until it is finished. An equal call goes
            on from there. Calls are told apart by settings and pre-trained matrices, not by data
            and loss. So give each run a folder of its own.
        validate: `validate(model)` returns a score, the higher the better. Methods that choose
            among networks need it.
        retrain: What trains once the last mask is found: "all", "norms_and_biases" (and the head)
            or "mask_lora" (these, and low-rank changes of what is kept).
        retrain_rate: Factor on the learning rate then, unless all trains.
        lora_rank: The rank of mask_lora's changes.
        lora_alpha: mask_lora's changes are multiplied by lora_alpha / lora_rank.
        seed: Seed of all that is chosen at random.
        **settings: The method's own settings, for ISP such as `compression_rate`, `look_ahead` and
            `denoisers`. ISP's rounds take a share `mask_finding` of the steps together. With
            `mask_finding=None` each round's length is given by `calibration`, in epochs.

    Returns:
        The trained model with its mask and cost.

    Raises:
        UserError: If a setting is not allowed; before any training.
    """
    first = exchange.rank() == 0
    steps, sparsity, seed = as_plain([steps, sparsity, seed])
    with exchange.for_itself():
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
            clip_norm=clip_norm, precision=precision, **retraining_of(
                chosen, retrain,
                retrain_rate=retrain_rate, lora_rank=lora_rank, lora_alpha=lora_alpha,
            ),
        )  # fmt: skip
        bare = unwrapped(model)
        check_trainable(bare)
        weights = choose(bare, prunable)
        check_whole(weights)
        check_some_stay(weights, sparsity)
        check_gradients(chosen, weights)  # while the model is as it was
        # The first process keeps the training, and tells the others what it finds there.
        store = store_of(checkpoint) if first else None
    check_same(chosen, sparsity, steps, recipe, weights, batches)
    exchange.load_first(bare)
    with in_full_width(bare) as narrow, own_words(chosen), own_random_numbers(bare):
        if narrow and precision == "auto":
            recipe = replace(recipe, precision="bf16")  # computes as it did
        run = LibraryRun(
            model, batches, loss, weights, chosen.recipe(recipe), steps,
            validate=validate, store=store, looks_at=chosen.looks_at, full=narrow,
        )  # fmt: skip
        chosen.check(sparsity, run.epochs)
        chosen.check_steps(sparsity, run)
        if recipe.partial:
            small_parameters(bare, run.mask)  # some there must be
        chosen.run(run, sparsity)
        run.network(run.state, run.recipe)
    model.eval()
    reached, cost = masks.sparsity(run.mask), exchange.from_first(asdict(run.cost))
    pruned = Pruned(model, run.mask, cost, chosen.name, reached, seed, run.found)
    if store is not None:  # last: until here it is what an equal call goes on from
        store.remove_used()
    return pruned
