"""A run over your own model, batches and loss, as pruning methods see it."""

import copy
import math
import numbers
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.library.model import HALF, unwrapped, without_ddp
from instant_soup.library.settings import length_of
from instant_soup.methods.base import Method
from instant_soup.models import matrices
from instant_soup.models.forward import CountFlops
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import exchange, loop
from instant_soup.training.checkpoints import Store, digest
from instant_soup.training.cost import Cost
from instant_soup.training.protocols import Protocol, draw_protocol
from instant_soup.training.pruner import Parameters, Pruner, fits
from instant_soup.training.run import AfterStep, Run
from instant_soup.training.state import State, Weights

Loss = Callable[[nn.Module, Any], torch.Tensor]
Validate = Callable[[nn.Module], float]
A_SCORE = "allowed: a number that is finite, the higher the better"
ALL = torch.empty(0, dtype=torch.int64)  # rows of a protocol: no batch is left out


class LibraryRun(Run):
    """A training of your own model, in place.

    With a store, an equal call goes on from where the last one stopped. Calls are told apart by
    settings, shapes and the pruned matrices. (A new head, which differs at each start of a script,
    is not among these matrices. So the run goes on.)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None,
        loss: Loss | None,
        prunable: Weights,
        recipe: Recipe,
        total: int,
        *,
        validate: Validate | None = None,
        store: Store | None = None,
        looks_at: Iterable[str] = Method.looks_at,
        epoch: int | None = None,
        full: bool = False,
    ) -> None:
        """Take in a model that has been checked.

        Args:
            model: The model as it was given, with its wrappers.
            batches: As in `prune`; None where a method needs none.
            loss: As in `prune`; None where a method needs none.
            prunable: Name → weight of what is pruned.
            recipe: Settings of training.
            total: The optimiser's steps in all.
            validate: `validate(model)` returns a score, the higher the better.
            store: Where trainings are kept; None: nowhere.
            looks_at: What the method's mask depends on.
            epoch: Steps in a pass over the data, if that is not the number of batches.
            full: Whether bf16 tensors in a batch become fp32, as the model did, or its copies do.
        """
        given, model = without_ddp(model), unwrapped(model)
        shapes = {name: list(w.shape) for name, w in weights_of(model).items()}
        origin = "" if store is None else digest("library", total, asdict(recipe), shapes, prunable)
        here = {name: exchange.own_part(weight) for name, weight in prunable.items()}
        super().__init__(
            State(weights_of(model)), masks.full(here), recipe, total,
            store=store, origin=origin, looks_at=looks_at,
        )  # fmt: skip
        self.model, self._given, self.shards = model, given, exchange.shards_of(prunable)
        self._batches, self._loss = batches, loss
        self._validate, self._epoch, self._full = validate, epoch, full
        self._flops: dict[Any, tuple[float, float]] = {}  # by the shapes in a batch
        self._last_flops = (0.0, 0.0)  # of the last batch

    @property
    def inputs_at(self) -> Mapping[str, int]:
        """As of matrices.inputs_at."""
        return matrices.inputs_at(self.model)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches.

        Raises:
            UserError: If the batches have no length.
        """
        length = self._epoch or length_of(self._batches)
        if length is None:
            raise UserError(
                "batches: their number is not known, and this method counts in epochs; allowed: "
                "batches with a len()"
            )
        return length

    @property
    def epochs(self) -> float:
        """The budget in epochs; infinite if the number of batches is not known."""
        length = self._epoch or length_of(self._batches)
        return self.total / length if length else float("inf")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def rows(self) -> int:
        """The number of batches, of which a share of the data is taken.

        A loop that adds up the gradients of several batches has fewer steps in a pass.
        """
        return length_of(self._batches) or self.steps_per_epoch

    def network(self, state: State, recipe: Recipe) -> nn.Module:
        """The model that was given, with a state's weights."""
        load_weights(self.model, state.weights)
        return self.model

    def beside(self, state: State, recipe: Recipe) -> nn.Module:
        """A copy of the model, in fp32: a loop's frozen matrices may be in half of it."""
        twin = twin_of(self.model)
        if self._full:
            twin.float()
        load_weights(twin, state.weights)
        return twin

    def take(
        self,
        network: nn.Module,
        state: State,
        pruner: Pruner | Mask,
        recipe: Recipe,
        cost: Cost,
        *,
        last: int,
        total: int | None,
        label: str,
        rows: torch.Tensor | None = None,
        after_step: AfterStep | None = None,
    ) -> State:
        """Take the engine's steps over all batches, or over those with the numbers `rows`."""
        source = steps(self._given_batches(), state.step, last, recipe.seed, rows)
        return loop.take_steps(
            network, state, pruner, source, lambda batch: self.loss(network, batch),
            lambda batch: self._all_flops(network, batch), recipe, cost,
            last=last, total=total, label=label, after_step=after_step,
        )  # fmt: skip

    def batches(self, first: int, last: int) -> Iterator[Any]:
        """The batches of some steps."""
        for _, batch in steps(self._given_batches(), first, last, self.recipe.seed):
            yield batch

    def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
        """Compute the loss of a batch, moved to the network's device.

        FLOPs are counted on the way if the batch's shapes are new, or not known, as of texts.

        Raises:
            UserError: If the result is no loss.
        """
        if self._loss is None:
            raise UserError("loss: none is given; allowed: a function (model, batch) -> scalar")
        batch = to_device(batch, next(network.parameters()).device, self._full)
        shapes = shapes_of(batch)
        if shapes in self._flops:
            self._last_flops = self._flops[shapes]
            found = self._loss(self._given if network is self.model else network, batch)
        else:
            named = dict(network.named_parameters())
            with CountFlops({name: named[name] for name in self.mask}) as counted:
                found = self._loss(network, batch)
            self._last_flops = counted.within, counted.elsewhere
            if shapes is not None:
                self._flops[shapes] = self._last_flops
        check_loss(found)
        return found

    def flops(self, network: nn.Module, batch: Any) -> tuple[float, float]:
        """FLOPs of the last batch: in products with prunable weights, and elsewhere."""
        return self._last_flops

    def _all_flops(self, network: nn.Module, batch: Any) -> tuple[float, float]:
        """The same for all processes, whose batches are taken to be of one shape."""
        within, elsewhere = self.flops(network, batch)
        return within * exchange.size(), elsewhere * exchange.size()

    def precision(self, recipe: Recipe) -> str:
        """What a recipe's precision is on the device here."""
        return loop.resolve_precision(recipe.precision, self.device)

    def score(self, weights: Weights) -> float:
        """Ask `validate` for the score of a copy of the model; of several processes the mean.

        Its cost is counted, for all processes.

        Raises:
            UserError: If there is no `validate`, or it returns no finite number.
        """
        if self._validate is None:
            raise UserError("validate: none is given; allowed: a function (model) -> score")
        started = time.perf_counter()
        network = self.beside(State(weights), self.recipe).eval()
        named = dict(network.named_parameters())
        counted = CountFlops({name: named[name] for name in self.mask})
        with exchange.for_itself():
            with torch.no_grad(), counted:
                found: Any = self._validate(network)
            try:
                score = float(found)
            except (TypeError, ValueError, RuntimeError):
                kind = type(found).__name__
                raise UserError(f"validate: it returned {kind}; {A_SCORE}") from None
            if not math.isfinite(score):
                raise UserError(f"validate: it returned {score}; {A_SCORE}")
        kept, prunable = masks.count(self.mask)
        within, elsewhere = counted.within * exchange.size(), counted.elsewhere * exchange.size()
        self.cost.add_forward(within, elsewhere, kept, prunable)
        self.cost.seconds += time.perf_counter() - started
        return exchange.mean(score)

    def draw_protocol(
        self,
        rates: list[float],
        decays: list[float],
        subset: float,
        *key: int,
        uniform: bool = False,
    ) -> Protocol:
        """Choose a denoiser's protocol, on all batches or a share of them.

        Args:
            rates: Lowest and highest factor on the learning rate.
            decays: Lowest and highest weight decay.
            subset: Share of the batches.
            *key: Numbers that seed the choice, beside the run's seed.
            uniform: Whether the factor is drawn uniformly, not log-uniformly.

        Returns:
            A protocol; its rows are the numbers of batches in a pass.
        """
        rows = 1 if subset == 1 else self.rows
        whole = (self.seed, *key)
        drawn = draw_protocol(self.recipe, rates, decays, subset, rows, whole, uniform)
        return replace(drawn, rows=ALL) if subset == 1 else drawn

    def _given_batches(self) -> Iterable[Any]:
        if self._batches is None:
            raise UserError("batches: none are given; allowed: batches that can be iterated again")
        return self._batches


class LoopRun(LibraryRun):
    """A run whose steps are taken by your own loop; it follows the model and its optimiser."""

    def __init__(self, *given: Any, optimizer: torch.optim.Optimizer, **more: Any) -> None:
        super().__init__(*given, **more)
        self.optimizer = optimizer
        self.step = 0  # steps that the loop has taken

    def parameters(self) -> Parameters:
        """Name → parameter of the model, as the optimiser has it."""
        exchange.deal_out_again(self.model)
        return dict(self.model.named_parameters())

    @contextmanager
    def aside(self, pruner: Any) -> Iterator[None]:
        """Set the run to where the loop is, within this context; keep torch's random state."""
        parameters = self.parameters()
        first, second = (
            {n: m.cpu() for n in pruner.mask if (m := self._moment(parameters[n], key)) is not None}
            for key in ("exp_avg", "exp_avg_sq")
        )
        self.state = State(weights_of(self.model), first, second, self.step)
        self.mask = pruner.mask
        self.gradients = {n: g.cpu() for n, g in pruner.gradients.items()}
        with own_random_numbers(self.model):
            yield

    def take_to_model(self, mask: Mask) -> None:
        """Copy the state's prunable weights into the model, pruned by a mask.

        Moments are pruned too: an optimiser that has trained before would move the zeros.
        """
        parameters = self.parameters()
        parts = {name: exchange.own_part(parameters[name]) for name in mask}
        for name, part in parts.items():
            part.copy_(self.state.weights[name])
        masks.apply(mask, parts)
        for name, kept in mask.items():
            for moment in self.optimizer.state.get(parameters[name], {}).values():
                if fits(moment, parameters[name]):
                    masks.apply({name: kept}, {name: exchange.own_part(moment)})

    def _moment(self, parameter: nn.Parameter, key: str) -> torch.Tensor | None:
        """A moment of Adam's kind; other optimisers hold other things."""
        moment = self.optimizer.state.get(parameter, {}).get(key)
        return exchange.own_part(moment) if fits(moment, parameter) else None


@contextmanager
def own_random_numbers(model: nn.Module) -> Iterator[None]:
    """Leave torch's random state outside this context as it is."""
    where = next(model.parameters()).device
    with torch.random.fork_rng([where] if where.type == "cuda" else []):
        yield


def to_device(batch: Any, where: torch.device, full: bool = False) -> Any:
    """Move all tensors in a batch to a device.

    Args:
        batch: A tensor, or dicts, lists and tuples with tensors in them.
        where: The device.
        full: Whether bf16 and fp16 become fp32.

    Returns:
        A batch of the same kind; what is there already is not copied.
    """

    def moved(value: Any) -> Any:
        return to_device(value, where, full)

    if isinstance(batch, torch.Tensor):
        there = batch.to(where, non_blocking=True)
        return there.float() if full and there.dtype in HALF else there
    if isinstance(batch, PackedSequence):  # a named tuple that may not be made of its parts
        packed: Any = batch.to(where)  # type: ignore[arg-type]
        return packed.float() if full and packed.data.dtype in HALF else packed
    if isinstance(batch, MutableMapping):
        own = copy.copy(batch)  # of its own kind: a defaultdict, a BatchEncoding, …
        for key, value in batch.items():
            own[key] = moved(value)
        return own
    if hasattr(batch, "_fields"):
        return type(batch)(*map(moved, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(moved, batch))
    return batch.to(where) if hasattr(batch, "to") else batch


def shapes_of(batch: Any) -> tuple | None:
    """The shapes of the tensors in a batch, on which its FLOPs depend; None if not on them alone.

    Numbers do not count. Texts do, as the loss may make tensors of them, and so do unknown things.
    """
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape)
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        parts = [shapes_of(value) for value in batch]
        return None if None in parts else tuple(parts)
    return () if batch is None or isinstance(batch, numbers.Number) else None


def check_loss(loss: Any) -> None:
    """Refuse a loss that has no gradient where one is needed.

    Raises:
        UserError: If it is no scalar tensor with a gradient.
    """
    kind = type(loss).__name__
    if isinstance(loss, torch.Tensor):
        if loss.numel() == 1 and (loss.requires_grad or not torch.is_grad_enabled()):
            return
        kind = f"a tensor of shape {list(loss.shape)}"
        if loss.numel() == 1:
            kind = "a number that does not depend on what is trained (detached, or all is frozen)"
    raise UserError(f"loss: it returned {kind}; allowed: a scalar tensor with a gradient")


def twin_of(model: nn.Module) -> nn.Module:
    """A copy of a model, also of one that has kept an activation, which torch refuses to copy.

    Raises:
        UserError: If it holds what Python cannot copy, as a lock or an open file.
    """
    attributes = [value for module in model.modules() for value in vars(module).values()]
    kept = [t for t in attributes if isinstance(t, torch.Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in kept})
    except TypeError as error:
        raise UserError(
            f"model: this method trains or scores copies of it, and copy.deepcopy says: {error}; "
            "allowed: a model that can be copied, or a method without copies, as isp_plus"
        ) from error


def weights_of(model: nn.Module) -> Weights:
    """Name → tensor of a model on the CPU. The model's own memory is shared where it is there.

    Of a tensor in shards it is the one of this process. Extra state, which a module may have beside
    its tensors, is none.
    """
    own = model.state_dict().items()
    return {name: exchange.own_part(w).cpu() for name, w in own if isinstance(w, torch.Tensor)}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Load weights into a model. If a tensor has several names (tied), its first name counts.

    Masks use the first name, so the copies under other names may be dense.
    """
    named, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name in weights:
            named[name] = weights[name]
        seen.add(id(tensor))
    model.load_state_dict(named, strict=False)


def steps(
    batches: Iterable, first: int, last: int, seed: int, rows: torch.Tensor | None = None
) -> Iterator[tuple[int, Any]]:
    """Iterate over batches, pass after pass.

    A loader's shuffle is seeded by the seed and the step at which a pass begins. If the length of a
    pass is known, a run that goes on takes up its pass where it stopped.

    Args:
        batches: Batches that can be iterated again and again.
        first: The first step.
        last: The step after the last one.
        seed: The run's seed.
        rows: Numbers of the batches to use. Then each pass is the same one.

    Yields:
        Step and batch, for the steps first … last − 1.

    Raises:
        UserError: If there are no batches, or they cannot be iterated twice.
    """
    chosen = None if rows is None or not len(rows) else set(rows.tolist())
    length = length_of(batches) if chosen is None else len(chosen)
    if length == 0:
        raise UserError("batches: nothing in them; allowed: at least one batch")
    step = first - first % length if length else first
    while step < last:
        began = step
        torch.manual_seed((seed * 1_000_003 + (began if chosen is None else 0)) % 2**63)
        shuffler: Any
        for shuffler in (batches, getattr(batches, "sampler", None)):
            if hasattr(shuffler, "set_epoch"):  # one of several processes, with a share of the rows
                shuffler.set_epoch(began if chosen is None else 0)
        for number, batch in enumerate(batches):
            if chosen is not None and number not in chosen:
                continue
            if step >= first:
                own = torch.get_rng_state()  # the batches' own draws go on as if nothing trained
                yield step, batch
                torch.set_rng_state(own)
            step += 1
            if step == last:
                return
        if step == began:
            raise UserError("batches: nothing in them, or they cannot be iterated twice")
