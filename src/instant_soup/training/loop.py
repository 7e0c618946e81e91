"""The training engine: one for every stage, from dense fine-tuning to a 10-step look-ahead.

Only a state (weights, optimiser moments, step) passes from stage to stage. Data order, dropout and
learning rate are functions of seed and step. So a chain of stages takes the very same steps as one
uninterrupted run.
"""

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from instant_soup.config.sections import Recipe
from instant_soup.data.batches import (
    Blocks,
    Split,
    evaluation_batches,
    to_device,
    training_batches,
)
from instant_soup.errors import UserError
from instant_soup.models.forward import forward_flops
from instant_soup.models.forward import logits_of as logits_of
from instant_soup.sparsity.masks import Mask
from instant_soup.training import data_parallel, exchange
from instant_soup.training.cost import Cost, peak_memory
from instant_soup.training.pruner import FixedMask, Pruner
from instant_soup.training.retraining import step_flops
from instant_soup.training.schedule import learning_rate, warmup_steps
from instant_soup.training.state import State

Batch = dict[str, torch.Tensor]
UNSEEN = {"cpu": 1, "cuda": 5}  # by device: steps after which their losses are looked at


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(wanted: str, where: torch.device | None = None) -> str:
    """Resolve `auto`: bf16 if the device multiplies it natively, else fp32.

    Args:
        wanted: `auto`, `bf16` or `fp32`.
        where: The device; None: the engine's own.

    Returns:
        `bf16` or `fp32`.
    """
    if wanted != "auto":
        return wanted
    if (where or device()).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def autocast(precision: str, where: torch.device) -> contextlib.AbstractContextManager:
    """Mixed precision for `bf16`. Weights, moments and gradients stay fp32 in any case."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(where.type, dtype=torch.bfloat16)


def make_optimizer(model: nn.Module, state: State, weight_decay: float) -> torch.optim.AdamW:
    """Make AdamW over the trainable parameters, with the state's moments.

    Biases and norms (vectors) have no weight decay, as is usual for transformers.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [
        {"params": [p for p in trainable.values() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    for name, parameter in trainable.items():
        if name in state.first_moments:
            optimizer.state[parameter] = {
                "step": torch.tensor(
                    float(state.counts.get(name, state.step)), device=parameter.device
                ),
                "exp_avg": _laid_out(state.first_moments[name], parameter),
                "exp_avg_sq": _laid_out(state.second_moments[name], parameter),
            }
    return optimizer


def _laid_out(moment: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A moment on its parameter's device, in the order of memory that the fused step needs."""
    moment = moment.to(parameter.device)
    if moment.stride() == parameter.stride():
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment).detach()


def state_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    of_pruner: dict[str, torch.Tensor] | None = None,
) -> State:
    """The state of a running training, on the CPU. Tensors that are there already are shared."""
    held = model.state_dict().items()
    cpu = {n: w.detach().cpu().contiguous() for n, w in held if isinstance(w, torch.Tensor)}
    # A parameter that no loss has reached yet has no moments.
    trained = {n: optimizer.state[p] for n, p in model.named_parameters() if p in optimizer.state}
    first = {name: moments["exp_avg"].cpu().contiguous() for name, moments in trained.items()}
    second = {name: moments["exp_avg_sq"].cpu().contiguous() for name, moments in trained.items()}
    own = {name: tensor.cpu().contiguous() for name, tensor in (of_pruner or {}).items()}
    # One that no loss reached in some steps has taken fewer.
    counts = {n: taken for n, adam in trained.items() if (taken := int(adam["step"])) != step}
    return State(cpu, first, second, step, own, counts)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean squared error for float labels (regression), cross-entropy for class numbers.

    Of a language model, whose outputs are rows × tokens × vocabulary, that of the next tokens.
    """
    logits, labels = of_followers(logits, labels)
    if labels.is_floating_point():
        return functional.mse_loss(logits.float().squeeze(-1), labels)
    return functional.cross_entropy(logits.float(), labels)


def of_followers(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A language model's outputs with the tokens that they foretell, each place a row of its own.

    A block's first token is foretold by nothing, and its last foretells nothing. The outputs of
    others are as they were.
    """
    if logits.ndim < 3:
        return logits, labels
    return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def distilled(
    logits: torch.Tensor,
    taught: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    hardness: float,
) -> torch.Tensor:
    """The loss of a network that learns from labels and from a teacher.

    (1 − h) · L(logits, labels) + h · T² · KL(softmax(taught / T) ‖ softmax(logits / T)), mean over
    rows (Hinton et al. 2015, arXiv 1503.02531). For regression the second term is h times the mean
    squared error against the teacher's output, without a temperature.

    Args:
        logits: The network's outputs, rows × classes.
        taught: The teacher's outputs, of the same shape.
        labels: Class numbers, or floats for regression.
        temperature: T.
        hardness: h, from 0 to 1.

    Returns:
        A scalar.
    """
    hard = loss_of(logits, labels)
    (logits, _), (taught, labels) = of_followers(logits, labels), of_followers(taught, labels)
    logits, taught = logits.float(), taught.float()
    if labels.is_floating_point():
        soft = functional.mse_loss(logits, taught)
    else:
        own, aim = (functional.log_softmax(one / temperature, dim=-1) for one in (logits, taught))
        between = functional.kl_div(own, aim, reduction="batchmean", log_target=True)
        soft = temperature**2 * between
    return (1 - hardness) * hard + hardness * soft


def predict(model: nn.Module, split: Split, precision: str) -> tuple[str, np.ndarray, np.ndarray]:
    """Run a network over a split.

    Args:
        model: The network.
        split: The encoded split.
        precision: `bf16` or `fp32`.

    Returns:
        Kind of task, predictions (rows × classes; regression: rows) and labels, for
        `metrics.scores`.
    """
    model.eval()
    order, outputs = [], []
    with torch.inference_mode(), autocast(precision, split.labels.device):
        for index in evaluation_batches(split):
            batch = split.rows(index)
            logits = logits_of(model, batch).float()
            order.append(index)
            outputs.append(logits if logits.ndim < 3 else surprises(logits, batch["labels"]))
    model.train()
    labels = split.labels.cpu()[torch.cat(order)].numpy()
    found = torch.cat(outputs).cpu().numpy()
    if isinstance(split, Blocks):
        return "language", found, labels[:, 1:]
    if split.labels.is_floating_point():
        return "regression", found[:, 0], labels
    return "classification", found, labels


def surprises(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The negative log likelihood of each token of blocks but the first: rows × (tokens − 1)."""
    each = functional.cross_entropy(*of_followers(logits, tokens), reduction="none")
    return each.view(len(tokens), -1)


AfterStep = Callable[[int, torch.Tensor, Callable[[], State]], None]


def train(
    model: nn.Module,
    state: State,
    pruner: Pruner | Mask,
    data: Split,
    recipe: Recipe,
    cost: Cost,
    *,
    last: int,
    total: int | None,
    label: str,
    teacher: nn.Module | None = None,
    after_step: AfterStep | None = None,
) -> State:
    """Train a classifier over an encoded split by `take_steps`, in the split's one data order.

    With a teacher the loss is `distilled`. The teacher gets each batch too, without dropout. If
    `recipe.processes` is more than one, the processes share each batch (data_parallel.py).
    """
    pruner = FixedMask(pruner) if isinstance(pruner, dict) else pruner
    processes = recipe.processes
    if processes > 1 and exchange.size() == 1 and state.step < last:
        kind, cpu = data.labels.device.type, torch.device("cpu")
        data_parallel.check(processes, recipe.batch_size, len(data), kind)
        beside = copy.deepcopy(model).cpu() if kind == "cuda" else model
        aside = copy.deepcopy(teacher).cpu() if teacher is not None else None
        others = (beside, state, pruner, to_device(data, cpu), recipe, last, total, aside)
        with data_parallel.together(processes, kind, _train_beside, *others):
            return train(
                model, state, pruner, data, recipe, cost,
                last=last, total=total, label=label, teacher=teacher, after_step=after_step,
            )  # fmt: skip
    # torch's fused attention is quick forward on a CPU, but slow backward (docs/method.md).
    if data.labels.device.type == "cpu" and hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")  # type: ignore[operator]

    def loss(batch: Batch) -> torch.Tensor:
        logits, labels = logits_of(model, batch), batch["labels"]
        if teacher is None:
            return loss_of(logits, labels)
        with torch.no_grad():
            taught = logits_of(teacher, batch)
        return distilled(logits, taught, labels, recipe.temperature, recipe.hardness)

    def flops(batch: Batch) -> tuple[float, float]:
        of_share = forward_flops(model, pruner.mask, batch)
        return of_share[0] * exchange.size(), of_share[1] * exchange.size()

    batches: Iterable[tuple[int, Batch]] = training_batches(data, recipe, state.step, last)
    own = slice(exchange.rank(), None, exchange.size())
    if exchange.size() > 1:
        batches = ((step, data_parallel.share(batch, own)) for step, batch in batches)
    model.to(data.labels.device)
    if teacher is not None:
        teacher.to(data.labels.device).eval()
    return take_steps(
        model, state, pruner, batches, loss, flops, recipe, cost,
        last=last, total=total, label=label, passes_beside=int(teacher is not None),
        after_step=after_step,
    )  # fmt: skip


def _likely_causes(at_first: bool, recipe: Recipe) -> str:
    """Why a loss may not be finite, in the first step and later."""
    if at_first:
        return (
            "nothing was trained before, so look for labels or inputs that are no finite numbers, "
            "and for weights that are too large"
        )
    return (
        f"try a smaller learning rate (it is {recipe.learning_rate:g}), a warm-up, a smaller "
        f"clip_norm ({recipe.clip_norm:g}), and look for labels that are far too large"
    )


def _train_beside(
    model: nn.Module,
    state: State,
    pruner: Pruner,
    data: Split,
    recipe: Recipe,
    last: int,
    total: int | None,
    teacher: nn.Module | None,
) -> None:
    """Take part in the same training in another process, on a device of its own.

    Model and state come in memory that the first process trains in, so copies are trained.
    """
    model, state, pruner, teacher = copy.deepcopy((model, state, pruner, teacher))
    here = to_device(data, data_parallel.own_device())
    train(
        model, state, pruner, here, recipe, Cost(),
        last=last, total=total, label="beside", teacher=teacher,
    )  # fmt: skip


def take_steps(
    model: nn.Module,
    state: State,
    pruner: Pruner | Mask,
    batches: Iterable[tuple[int, Any]],
    loss_of_batch: Callable[[Any], torch.Tensor],
    flops_of_batch: Callable[[Any], tuple[float, float]] | None,
    recipe: Recipe,
    cost: Cost,
    *,
    last: int,
    total: int | None,
    label: str,
    passes_beside: int = 0,
    after_step: AfterStep | None = None,
) -> State:
    """Take the steps `state.step` … `last` − 1 of a run.

    Args:
        model: The network; it stays on its device. What requires no gradient stays as it is.
        state: The state to begin at.
        pruner: Keeps the network sparse (pruner.py); a mask stands for `FixedMask`.
        batches: Yields (step, batch) for just these steps.
        loss_of_batch: Computes the loss of a batch, a scalar.
        flops_of_batch: FLOPs of a forward pass: in prunable matrices, and elsewhere.
        recipe: learning_rate, weight_decay, clip_norm, warmup (a share of `total`), seed, precision
            and the rate's cycles are used; `retrain` and its rank to count FLOPs.
        cost: What these steps cost is added to it.
        last: The step after the last one.
        total: The rate falls to zero over so many steps, or in cycles. None: it is constant, as in
            a look-ahead.
        label: What the progress bar says.
        passes_beside: Forward passes of a dense network, such as a teacher, in each step.
        after_step: `after_step(steps done, loss, snapshot)` is called after each step. `snapshot()`
            returns the state at that point.

    Returns:
        The new state.

    Raises:
        UserError: If a loss is not finite; at most UNSEEN steps later, before any state is taken.
            If the first one is of another network.
    """
    pruner = FixedMask(pruner) if isinstance(pruner, dict) else pruner
    where = next(model.parameters()).device
    precision = resolve_precision(recipe.precision, where)
    model.train()
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(model, state, recipe.weight_decay)
    optimizer.zero_grad()  # what a caller's own code may have left
    trainable = [p for p in parameters.values() if p.requires_grad]
    own = len(optimizer.param_groups)
    pruner.attach(parameters, optimizer, state.of_pruner)
    beside = [p for group in optimizer.param_groups[own:] for p in group["params"]]
    trainable += beside
    first = state.step
    if last <= first:
        return state
    warmup = warmup_steps(recipe.warmup, total) if total else 0
    # An adapter takes its matrix's gradient away, so its own are what is averaged.
    shared_loss = data_parallel.averaging(model, loss_of_batch, getattr(pruner, "adapters", ()))

    taken = first  # steps: counted before anything moves, so that no torn state passes for one
    buffers = [b for b in model.buffers() if not b.is_inference()]  # those have no versions

    def counted() -> list[int]:
        return [b._version for b in buffers]  # which a forward pass of some norms moves on

    versions = counted()
    recent: dict[int, torch.Tensor] = {}  # losses not looked at yet: to look is to wait for a GPU

    def check() -> None:
        finite = torch.stack([*recent.values()]).isfinite().tolist() if recent else []
        if not all(finite):
            failed = [*recent][finite.index(False)]
            raise UserError(
                f"{label}: the loss of step {failed + 1} is {recent[failed].item()}: "
                + _likely_causes(failed == first, recipe)
            )
        recent.clear()

    def snapshot() -> State:
        check()
        cost.peak_memory = max(cost.peak_memory, peak_memory())
        torn = counted() != versions  # by a step that has only begun
        return state_of(model, optimizer, taken + torn, pruner.tensors())

    interval = 0.2 if sys.stderr.isatty() else 30.0
    mark = time.perf_counter()
    for step, batch in tqdm(
        exchange.each(batches), desc=label, total=last - first, unit="step", mininterval=interval,
        disable=exchange.rank() > 0,
    ):  # fmt: skip
        # This step's dropout, of this process's rows.
        torch.manual_seed((recipe.seed * 1_000_003 + step + 7_919 * exchange.rank()) % 2**63)
        rate, falls = recipe.learning_rate, (warmup, recipe.cycles, recipe.lowest_rate)
        rate = rate if total is None else learning_rate(step, total, rate, *falls)
        for group in optimizer.param_groups:
            group["lr"] = rate
        unfused = sdpa_kernel(SDPBackend.MATH) if where.type == "cpu" else contextlib.nullcontext()
        with exchange.a_step(), autocast(precision, where), unfused:
            loss = shared_loss(batch)
        loss.backward()
        if step == first and all(p.grad is None for p in trainable):
            raise UserError(
                f"{label}: the loss has no gradient for the network that trains; allowed: a loss "
                "of the model that the function is given, which may be a copy"
            )
        if exchange.size() > 1:
            loss = loss.detach()
            exchange.average([loss, *(p.grad for p in beside if p.grad is not None)])
        recent[step] = loss.detach().float().reshape(())
        if len(recent) == UNSEEN.get(where.type, 1):
            check()
        kept, prunable, taken = pruner.kept, pruner.prunable, step + 1
        pruner.after_backward(step)
        nn.utils.clip_grad_norm_(trainable, recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        pruner.after_step(step)
        if flops_of_batch is not None:
            in_prunable, others = flops_of_batch(batch)
            of_teacher = passes_beside * (in_prunable + others)
            whole, sparse = step_flops(recipe, in_prunable, others, kept, prunable)
            cost.flops += whole + of_teacher
            cost.sparse_flops += sparse + of_teacher
        cost.steps += 1
        cost.seconds += time.perf_counter() - mark
        versions = counted()
        if after_step is not None:
            after_step(step + 1, loss, snapshot)
        mark = time.perf_counter()
    check()
    exchange.load_first_buffers(model)
    versions = counted()
    cost.seconds += time.perf_counter() - mark  # the wait for a GPU's last steps
    return snapshot()
