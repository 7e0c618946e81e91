"""A run: one training of T steps, as a pruning method sees it.

A method trains, looks ahead, asks for gradients or a validation score, and prunes. It does not care
whether the run is the pipeline's (pipeline/run.py) or one over a user's own model, batches and loss
(library/run.py). Both say how a network is built, and what its batches and its loss are. All else
is here.
"""

import time
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.files import check_seal, new_folder, read_json, seal, sealed, write_json
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Cut, Mask
from instant_soup.sparsity.ranking import WHOLE
from instant_soup.training import exchange, retraining
from instant_soup.training.checkpoints import Curve, Record, Store, digest, found_in
from instant_soup.training.cost import Cost, peak_memory
from instant_soup.training.protocols import Protocol, draw_protocol
from instant_soup.training.pruner import FixedMask, Pruner
from instant_soup.training.schedule import warmup_steps
from instant_soup.training.state import State, Weights

AfterStep = Callable[[int, torch.Tensor, Callable[[], State]], None]
Found = TypeVar("Found", Mask, Cut, Mask | Cut)


@dataclass
class Moment:
    """A point of a run that one can go back to."""

    state: State
    mask: Mask
    origin: str
    curve: Curve


class Run(ABC):
    """One training of `total` steps on the way: its state, its mask, and its cost.

    `state.step` steps of the budget are done, as `cost.steps` says; `cost.search_steps` counts all
    other steps. `origin` is a digest of what the state depends on; with the number of steps it
    names the state. `code` is a digest of the method's own sources. What the method finds, or
    trains by a pruner of its own, depends on them too; training under a mask does not.
    """

    def __init__(
        self,
        state: State,
        mask: Mask,
        recipe: Recipe,
        total: int,
        *,
        store: Store | None,
        origin: str,
        code: str = "",
        looks_at: Iterable[str] = ("seed", "data"),
    ) -> None:
        self.state, self.mask, self.recipe, self.total = state, mask, recipe, total
        self.store, self.origin, self.looks_at = store, origin, frozenset(looks_at)
        self.code = code
        self.own_state = False  # whether the weights were changed by other means than training
        self.target = 0.0  # the sparsity that the last of several rounds reaches
        self.cost = Cost()
        self.curve: Curve = []
        self.gradients: Weights = {}  # dense, of the last step of `train(keep_gradients=True)`
        self.at_work: tuple[nn.Module, Pruner] | None = None  # what is training now
        self.found: dict[str, Any] = {}  # what the result shall tell of a search
        self.shards = WHOLE  # which part of the prunable weights is here
        self.alike = 1  # processes that do what `count` counts, each with batches of its own

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return torch.device("cpu")

    # What the pipeline's run and the library's do each in their own way.

    @property
    def inputs_at(self) -> Mapping[str, int]:
        """Name → dimension of the inputs, of weights that do not have them last."""
        return {}

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training data.

        Raises:
            UserError: If that is not known.
        """

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return warmup_steps(self.recipe.warmup, self.total)

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of training rows (or batches), of which a denoiser's subset is a share."""

    @abstractmethod
    def network(self, state: State, recipe: Recipe) -> nn.Module:
        """The network with a state's weights, on the device where it trains."""

    @abstractmethod
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
        """Train a network up to step `last` by the engine's steps, on all rows or some."""

    @abstractmethod
    def batches(self, first: int, last: int) -> Iterator[Any]:
        """The training batches of the steps first … last − 1."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
        """The training loss of a batch."""

    @abstractmethod
    def flops(self, network: nn.Module, batch: Any) -> tuple[float, float]:
        """FLOPs of a forward pass of a batch: in prunable matrices, and elsewhere."""

    @abstractmethod
    def precision(self, recipe: Recipe) -> str:
        """What a recipe's precision is on the device here: bf16 or fp32."""

    @abstractmethod
    def score(self, weights: Weights) -> float:
        """The validation score of a network with these weights; its cost is counted."""

    def beside(self, state: State, recipe: Recipe) -> nn.Module:
        """A separate network with a state's weights, for look-aheads, gradients and scores."""
        return self.network(state, recipe)

    def aside(self, pruner: Pruner) -> AbstractContextManager[None]:
        """Bring a run whose steps another's loop takes to where that loop's pruner is."""
        return nullcontext()

    def record(self, folder: Any, cost: Cost, last: int) -> Record:
        """The record of a training; without rows, unless a run has a curve to show."""
        return Record(
            folder, cost, last=last, row_every=last + 1, validate_every=last + 1,
            row=lambda step, mean, _: {"step": step, "train_loss": mean}, show=lambda row: None,
        )  # fmt: skip

    def ticket_of(self, row: str) -> tuple[Mask, Cost]:
        """The mask that another row has found, and its cost."""
        raise UserError(f"method: only the pipeline has the ticket of {row}")

    def random_state(self) -> State:
        """A state at step 0 with random weights in place of the pre-trained ones."""
        raise UserError("method: only the pipeline makes random weights")

    # What methods ask for.

    @property
    def seed(self) -> int:
        """The run's seed. A method that declares no seed does not get it."""
        if "seed" not in self.looks_at:
            raise AttributeError("this method says that it does not look at the seed (`looks_at`)")
        return self.recipe.seed

    @property
    def weights(self) -> Weights:
        """The prunable weights as they are now."""
        return {name: self.state.weights[name] for name in self.mask}

    def train(
        self,
        last: int,
        label: str,
        *,
        pruner: Pruner | None = None,
        key: Any = None,
        recipe: Recipe | None = None,
        keep_gradients: bool = False,
        keep: bool = True,
        total: int | None = None,
    ) -> None:
        """Train up to step `last` of the budget, under the run's mask or by a pruner.

        The training is recorded in the store: an equal call goes on from there. If the recipe says
        so, only some parameters train (retraining.py), under the run's mask.

        Args:
            last: The step after the last one.
            label: What the progress bar says.
            pruner: What keeps the network sparse; None: the run's mask.
            key: What the pruner's work depends on.
            recipe: Settings of training; None: the run's.
            keep_gradients: Whether the dense gradients of the last step are in `gradients`
                afterwards.
            keep: Whether the store keeps the training after `forget`, too.
            total: The rate falls to zero at this step; None: at the budget's end.
        """
        self._check_data()
        own, cost, first = recipe or self.recipe, Cost(), self.state.step
        if own.partial:
            pruner = retraining.pruner_of(own, self.mask, self.state.weights)
        elif pruner is None:
            pruner = FixedMask(self.mask, gradients_at={last - 1} if keep_gradients else ())
        by = None if key is None else [key, self.code]
        until = self.total if total is None else total
        ends = first, last, until
        # An entry that will be forgotten is none of those that are kept.
        parts = ["train", self.origin, *ends, self._settings(own), by, keep, keep_gradients]
        with self._entry(*parts, keep=keep) as folder:
            record = self.record(folder, cost, last)
            state = record.resume(self.state, label)
            network = self.network(state, own)
            self.at_work = network, pruner
            if not record.curve and first > 0 and (row := self.first_row(network)):
                record.add(row)
            with record.going(), retraining.only_some(network, state, pruner, own):
                self.state = self.take(
                    network, state, pruner, retraining.at_its_rate(own), cost,
                    last=last, total=until, label=label, after_step=record.after_step,
                )  # fmt: skip
            if keep_gradients and last > first:
                self.gradients = {n: g.cpu() for n, g in getattr(pruner, "gradients", {}).items()}
                self.state.of_pruner = {}
            if own.partial:
                self.state.of_pruner = {}  # merged by now
            self.mask = pruner.mask
        self.cost.add(cost)
        self.curve += record.curve
        if key is not None or recipe is not None:
            self.origin = digest(parts)

    def forget(self) -> None:
        """Take out of the store what need not be kept, as the outputs made of it are in place."""
        if self.store is not None:
            self.store.forget()

    def first_row(self, network: nn.Module) -> dict[str, Any] | None:
        """The curve's row of a network that was just pruned, before it trains on."""
        return None

    def prune(self, found: Mask | Cut) -> None:
        """Take a mask: what it prunes becomes zero, moments too. A cut changes others as well."""
        mask, *changed = found if isinstance(found, Cut) else (found,)
        self.origin = digest(self.origin, self.state.step, mask, *changed)
        self.mask, self.own_state = mask, self.own_state or bool(changed)
        for name, weight in changed[0].items() if changed else ():
            self.state.weights[name].copy_(weight)
        self.state.prune(mask)

    def moment(self) -> Moment:
        """This point of the run, to go back to."""
        return Moment(self.state.copy(), self.mask, self.origin, list(self.curve))

    def go_back(self, to: Moment, mask: Mask | None = None) -> None:
        """Go back to a moment, maybe with another mask; the steps since become search steps."""
        back = max(0, self.cost.steps - to.state.step)
        self.cost.steps -= back
        self.cost.search_steps += back
        self.curve = list(to.curve)
        self.state, self.mask, self.origin = to.state.copy(), to.mask, to.origin
        if mask is not None:
            self.prune(mask)

    def start_from(self, state: State, mask: Mask) -> None:
        """Replace this run's state by another one, pruned by a mask."""
        self.origin = digest(self.origin, "start from", state.weights)
        self.state, self.own_state = state, True
        self.prune(mask)

    def moved(self, how: Any) -> None:
        """Record that the weights were changed by other means than training, as `how` tells."""
        self.origin, self.own_state = digest(self.origin, self.state.step, how), True

    def look_ahead(
        self, protocol: Protocol, steps: int, label: str, mask: Mask | None = None
    ) -> State:
        """Train a copy of the network for some steps beside the run, on some of the rows.

        The copy has a fresh optimiser at a constant rate (paper, Algorithm 2, line 4). Its steps
        are search steps.

        Args:
            protocol: Rate, weight decay, rows and seed.
            steps: How many steps.
            label: What the progress bar says.
            mask: Prunes the copy first, if given.

        Returns:
            The copy's state.
        """
        self._check_data()
        state, cost = State({name: w.clone() for name, w in self.state.weights.items()}), Cost()
        if mask is not None:
            state.prune(mask)
        recipe = protocol.applied_to(self.recipe)
        network = self.beside(state, recipe)
        trained = self.take(
            network, state, mask or self.mask, recipe, cost,
            last=steps, total=None, label=label, rows=protocol.rows,
        )  # fmt: skip
        self.cost.add(cost.as_search())
        return trained

    def side_by_side(self, number: int, find: Callable[[int], Mask]) -> list[Mask]:
        """Find several masks, shared out over the processes; all get all of them, and their cost.

        Args:
            number: How many.
            find: `find(n)` finds mask n in one process, without the others.

        Returns:
            The masks, in order.
        """
        processes = exchange.size()
        if processes == 1:
            return [find(n) for n in range(number)]
        mine = range(exchange.rank(), number, processes)
        before, self.cost = self.cost, Cost()
        with exchange.for_itself():
            own = [find(n) for n in mine]
        told = exchange.gathered(([masks.packed(mask) for mask in own], asdict(self.cost)))
        self.cost = before
        self.cost.seconds += max(cost.pop("seconds") for _, cost in told)
        for _, cost in told:
            self.cost.add(cost)
        shapes = {name: list(kept.shape) for name, kept in self.mask.items()}
        return [
            masks.unpacked(told[n % processes][0][n // processes], shapes) for n in range(number)
        ]

    def draw_protocol(
        self,
        rates: list[float],
        decays: list[float],
        subset: float,
        *key: int,
        uniform: bool = False,
    ) -> Protocol:
        """Choose a training protocol that depends on the seed and the key."""
        whole = (self.seed, *key)
        return draw_protocol(self.recipe, rates, decays, subset, self.rows, whole, uniform)

    def search(self, key: Any, find: Callable[..., Found], *arguments: Any) -> Found:
        """Find a mask or a cut, or take what an equal call has found; its cost is added.

        The seconds of finding are counted here. What it trains counts itself.

        Args:
            key: What the result depends on.
            find: Finds it, `find(*arguments)`.
            *arguments: What `find` takes.

        Returns:
            What was found.
        """
        parts = [
            "search",
            self.origin,
            self.state.step,
            self._settings(self.recipe),
            key,
            self.code,
        ]
        with self._entry(*parts) as folder:
            if kept := exchange.from_first(found_in(folder, _load)):
                self.cost.add(kept[1])
                return kept[0]
            before, self.cost = self.cost, Cost()
            started = time.perf_counter()
            try:
                found = self.agreed(find(*arguments))
                self.cost.seconds = time.perf_counter() - started
                self.cost.peak_memory = peak_memory()
                if folder is not None:
                    with new_folder(folder) as unfinished:
                        _save(unfinished, found)
                        write_json(unfinished / "cost.json", asdict(self.cost))
                        seal(unfinished)
            finally:
                before.add(self.cost)
                self.cost = before
        return found

    def agreed(self, found: Found) -> Found:
        """What the first process has found: whatever a method does, all have one mask."""
        if exchange.size() == 1 or self.shards != WHOLE:
            return found  # of its own shard
        mask, changed = found if isinstance(found, Cut) else (found, None)
        shapes = {name: list(kept.shape) for name, kept in mask.items()}
        bits, changed = exchange.from_first((masks.packed(mask), changed))
        mask = masks.unpacked(bits, shapes)
        return typing.cast(Found, mask if changed is None else Cut(mask, changed))

    @contextmanager
    def at_rest(
        self, batches: int, passes: int, first: int = 0
    ) -> Iterator[tuple[nn.Module, Iterator[Any]]]:
        """Yield the network as it is now, beside the run, and the run's batches from `first` on.

        The network is in fp32 and without dropout. Attention runs unfused: torch's fused kernels
        have no second derivative.

        Args:
            batches: How many batches.
            passes: What is done with a batch, in forward passes, for the cost; a gradient is three.
            first: The step of the first batch.

        Yields:
            The network and its batches.
        """
        self._check_data()
        network = self.beside(self.state, self.recipe).eval()
        if hasattr(network, "set_attn_implementation"):
            network.set_attn_implementation("eager")  # type: ignore[operator]

        def each() -> Iterator[Any]:
            for batch in self.batches(first, first + batches):
                yield batch
                self.count(network, batch, passes)

        self.alike = exchange.size()
        with exchange.for_itself(), sdpa_kernel(SDPBackend.MATH):
            yield network, each()
        network.train()

    def count(self, network: nn.Module, batch: Any, passes: int) -> None:
        """Count forward passes of a batch that has been passed through the network."""
        flops = passes * sum(self.flops(network, batch)) * self.alike
        self.cost.add({"flops": flops, "sparse_flops": flops})

    @contextmanager
    def losses(
        self, batches: int, passes: int, first: int = 0
    ) -> Iterator[tuple[Iterator[torch.Tensor], Weights]]:
        """Yield the training losses of such batches, with their graphs, and the parameters."""
        with self.at_rest(batches, passes, first) as (network, each):
            parameters = self.prunable_of(network)
            yield (self.loss(network, batch) for batch in each), parameters

    def prunable_of(self, network: nn.Module) -> Weights:
        """A network's prunable parameters, which now have gradients."""
        named = dict(network.named_parameters())
        return {name: named[name].requires_grad_() for name in self.mask}

    def in_parts(self, batch: Any, number: int) -> list[tuple[Any, float]]:
        """Cut a batch into at most so many parts.

        Args:
            batch: The batch.
            number: The most parts.

        Returns:
            Each part, and the factor on its loss; so they add up to the batch's. Here the whole
            batch, as it is not known how a loss of one's own is made of the rows.
        """
        return [(batch, 1.0)]

    def _check_data(self) -> None:
        if "data" not in self.looks_at:
            raise AttributeError("this method says that it does not look at the data (`looks_at`)")

    def _settings(self, recipe: Recipe) -> dict[str, Any]:
        """A recipe's settings as they are here: `auto` is another precision elsewhere."""
        return asdict(replace(recipe, precision=self.precision(recipe)))

    @contextmanager
    def _entry(self, *parts: Any, keep: bool = True) -> Iterator[Any]:
        if self.store is None:
            yield None
        else:
            with self.store.entry(*parts, keep=keep) as folder:
                yield folder


def _save(folder: Path, found: Mask | Cut) -> None:
    """Write what a search has found."""
    mask, *changed = found if isinstance(found, Cut) else (found,)
    masks.save(folder / "mask.safetensors", mask)
    if changed:
        save_file(changed[0], folder / "weights.safetensors")


def _load(folder: Path) -> tuple[Any, dict[str, float]]:
    """Read what a search has found, and its cost."""
    mask, cost = masks.load(folder / "mask.safetensors"), read_json(folder / "cost.json")
    check_seal(folder, "cost.json")
    weights = folder / "weights.safetensors"
    if not weights.exists() and weights.name not in sealed(folder):
        return mask, cost
    check_seal(folder, weights.name)
    return Cut(mask, load_file(weights)), cost
