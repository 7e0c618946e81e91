"""What a pruning method is: a name, its settings, and how it finds its ticket in a run.

A method is a frozen dataclass in a file of this folder, under the decorator `@register`. Its fields
are its settings. Everything else is derived from it: its plan, its section of params.yaml, the
table of settings, the ledger's `variant`, names and colours in tables and figures, DVC's lists.
docs/add_a_method.md walks through one.

The kinds differ in when the mask changes. A subclass has one function, of its kind:

    AtStart      scores(run)             once, on the pre-trained network
    OnTheWay     find_mask(run, i, s)    at the ends of rounds (rounds.py); training goes on
    Throughout   pruner(run, sparsity)   every few steps, by a pruner
    Method       find(run, sparsity)     all else: after a search, with resets, from another row

Nothing in this folder imports torch before a method runs, so that planning stays quick.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from instant_soup.config.fields import settings_of
from instant_soup.errors import UserError
from instant_soup.training.schedule import at_most

if TYPE_CHECKING:
    from instant_soup.config.sections import Recipe
    from instant_soup.sparsity.masks import Cut, Mask
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run
    from instant_soup.training.schedule import Steps
    from instant_soup.training.state import Weights

REGISTRY: dict[str, type["Method"]] = {}


def register(method: type["Method"]) -> type["Method"]:
    """Let a method be known by its name; TypeError where it lacks one, or another has it."""
    for needed in ("name", "title"):
        if not isinstance(getattr(method, needed, None), str):
            raise TypeError(f"{method.__name__}: a method needs a {needed}")
    known = REGISTRY.get(method.name)
    if known is not None and _place(known) != _place(method):
        raise TypeError(f"{method.__name__}: {method.name} is {known.__name__}'s name already")
    REGISTRY[method.name] = method
    return method


def _place(method: type["Method"]) -> tuple[str, str]:
    """Where a class stands: a file that is read again has no other one."""
    return method.__module__, method.__qualname__


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the tables."""

    name: ClassVar[str]  # in params.yaml, in the ledger
    title: ClassVar[str]  # in tables and figures
    order: ClassVar[float] = 60  # of rows in tables; equal ones by name
    source: ClassVar[str] = ""  # the paper
    style: ClassVar[tuple[str, str] | None] = None  # colour and marker in figures
    main: ClassVar[bool] = False  # drawn strongly there
    section: ClassVar[str] = ""  # of params.yaml; its name if none is given
    # What its ticket depends on beside the pre-trained weights: "seed", and "data", by which the
    # settings of training enter. A method that looks at something it does not name is an error.
    looks_at: ClassVar[tuple[str, ...]] = ("seed", "data")
    needs: ClassVar[tuple[str, ...]] = ()  # rows that it is made of
    dense: ClassVar[bool] = False  # whether nothing is pruned in the end
    validates: ClassVar[bool] = False  # whether it asks a run for validation scores
    finishes: ClassVar[bool] = False  # whether nothing is left to train on its ticket

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that this sparsity and budget are possible; before any work.

        Args:
            sparsity: Share of the prunable weights to prune.
            epochs: The budget.

        Raises:
            UserError: If they are not.
        """

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that the budget has enough steps; before any is taken.

        Args:
            sparsity: Share of the prunable weights to prune.
            run: A run, or the steps that it would have.

        Raises:
            UserError: If it has not.
        """
        if run.warmup_steps >= run.total:
            raise UserError(
                f"training.warmup: leaves none of {run.total} steps after the warm-up; "
                f"{enough(at_most(1 - 1 / run.total))}"
            )

    def check_size(self, weights: int) -> None:
        """Check that so many prunable weights are not too many for the method; before any work.

        Raises:
            UserError: If they are.
        """

    @property
    def remembers(self) -> bool:
        """Whether its pruner holds between two steps what the network's zeros do not tell."""
        return False

    def wants_batches(self) -> bool:
        """Whether it asks a run for batches of its own, to look ahead or for their gradients."""
        return False

    def idle(self) -> dict[str, str]:
        """Settings that it does not read, as the others are: name → which of those would."""
        return {}

    def ranks_by_gradients(self) -> bool:
        """Whether a weight that is frozen, and so has no gradient, could not be ranked."""
        return False

    def ranks_by_moments(self) -> bool:
        """Whether it ranks by Adam's second moments, which other optimisers do not have."""
        return False

    def ranks_shards(self) -> bool:
        """Whether matrices may lie in shards: each weight's score is its own."""
        return False

    def more_trainings(self, sparsity: float) -> float:
        """About how many whole trainings its ticket takes beside the row's own."""
        return 0

    def recipe(self, recipe: "Recipe") -> "Recipe":
        """The settings of training that the row trains by: those of all rows."""
        return recipe

    def find(self, run: "Run", sparsity: float) -> None:
        """Bring a run from its start to the point from where only training is left."""
        raise TypeError(f"{type(self).__name__} does not say how it finds its ticket")

    def run(self, run: "Run", sparsity: float) -> None:
        """The whole method: find the ticket, then train it for the rest of the budget."""
        asked, run.recipe = run.recipe, run.recipe.whole()
        self.find(run, sparsity)
        run.recipe = asked
        run.looks_at = frozenset(Method.looks_at)  # training looks at all; only finding is guarded
        run.train(run.total, "the rest", keep=False)

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The method as a pruner of a foreign loop, which trains once from begin to end."""
        raise UserError(
            f"method: {self.name} trains more than once, which a loop of one's own cannot; "
            "allowed: instant_soup.prune"
        )


def key_of(method: type[Method], setting: str) -> str:
    """A setting's place in params.yaml: section.key."""
    own = settings_of(method)[setting].metadata["section"]
    return f"{own or method.section or method.name}.{setting}"


def keys_of(method: type[Method]) -> dict[str, str]:
    """Setting → its place in params.yaml."""
    return {name: key_of(method, name) for name in settings_of(method)}


def enough(*ways: str) -> str:
    """What a refusal for too few steps allows: one of some ways, or more steps."""
    named = [way for way in ways if way]
    return f"allowed: {', or '.join([*named, 'more steps in all (training.epochs)'])}"


def check_before(method: Method, first: str, then: str) -> None:
    """UserError unless one setting is less than another."""
    early, late = (getattr(method, name) for name in (first, then))
    keys = [key_of(type(method), name) for name in (first, then)]
    if early >= late:
        raise UserError(
            f"{keys[0]}: {early} is not before {keys[1]} {late}; allowed: less than {late}"
        )


@dataclass(frozen=True, kw_only=True)
class AtStart(Method):
    """The mask is found on the pre-trained network; then the whole budget is trained on it."""

    def scores(self, run: "Run") -> "Weights":
        """A score for each prunable weight; the largest of all matrices together stay."""
        raise TypeError(f"{type(self).__name__} has no scores")

    def mask(self, run: "Run", sparsity: float) -> "Mask | Cut":
        """The mask of exactly the wanted sparsity; a cut changes weights that stay."""
        from instant_soup.sparsity import scores

        return scores.best(self.scores(run), sparsity, shards=run.shards)

    def find(self, run: "Run", sparsity: float) -> None:
        """Find the mask on the pre-trained network, and prune."""
        run.prune(run.search(self._key(sparsity), self.mask, run, sparsity))

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """A fixed mask, found before the first step."""
        from instant_soup.training.pruner import FixedMask

        self.find(run, sparsity)
        return FixedMask(run.mask)

    def _key(self, sparsity: float) -> list[Any]:
        return [self.name, vars(self), sparsity]


@dataclass(frozen=True, kw_only=True)
class Throughout(Method):
    """The mask moves every few steps, and stays for the last part of the budget.

    A subclass has `pruner(run, sparsity)`, and `settled(total)`, the step from which its mask
    stays.
    """

    @property
    def remembers(self) -> bool:
        """A mask that moves, at least."""
        return True

    def settled(self, total: int) -> int:
        """The step from which the mask stays: at the latest when a fifth of `total` is left."""
        raise TypeError(f"{type(self).__name__} does not say when its mask settles")

    def needed_until(self, total: int) -> int:
        """The step up to which its pruner trains; then a fixed mask does."""
        return self.settled(total)

    def find(self, run: "Run", sparsity: float) -> None:
        """Train by the pruner until its mask stays."""
        pruner = self.pruner(run, sparsity)
        key = [self.name, vars(self), sparsity]
        run.train(self.needed_until(run.total), self.title, pruner=pruner, key=key)
        run.prune(pruner.mask)
        run.state.of_pruner = {}
