"""Rounds: train a little, prune a little, go on (Algorithm 1); how long and how far each goes.

There are two schedules: ISP's rounds, which grow, and a cubic ramp of evenly spaced prunes. With
either, the learning rate may start again several times.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from instant_soup.config.fields import (
    BOOLEAN,
    MOST_EPOCHS,
    MOST_STEPS,
    ByFamily,
    integer,
    number,
    one_of,
    setting,
    settings_of,
)
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, check_before, enough, key_of
from instant_soup.training.schedule import at_least, at_most, cubic, steps_of

if TYPE_CHECKING:
    from instant_soup.config.sections import Recipe
    from instant_soup.sparsity.masks import Cut, Mask
    from instant_soup.training.pruner import Pruner
    from instant_soup.training.run import Run
    from instant_soup.training.schedule import Steps
    from instant_soup.training.state import Weights

RATE = number(0.01, 1, high_too=False)
RATE_OF = one_of("total", "remaining")
CUBIC = "cubic"
# Settings that only one of the two schedules reads.
OF_ROUNDS = ("compression_rate", "rate_of", "calibration", "growing", "mask_finding")
OF_CUBIC = ("prunes", "first_cut", "begin", "end")


def round_sparsities(target: float, rate: float, rate_of: str) -> list[float]:
    """Sparsity after each round, up to exactly the target (Algorithm 1, line 4).

    Args:
        target: The last sparsity, from 0 to 1.
        rate: The compression rate s, from 0 to 1.
        rate_of: `total`: the rate is a share of all weights, as in the paper (10 % reaches 70 % in
            7 rounds). `remaining`: it is a share of what is left, as in the released research code.

    Returns:
        One number for each round.
    """
    sparsities: list[float] = []
    while not sparsities or sparsities[-1] < target:
        done = len(sparsities) + 1
        reached = done * rate if rate_of == "total" else 1 - (1 - rate) ** done
        # Rounded, so that 3 * 0.2 is 0.6: a round's settings must not depend on float noise.
        # Nor must the number of rounds: a target of 1 - 0.7 is a little more than 0.3.
        reached = round(reached, 10)
        sparsities.append(target if reached >= round(target, 10) else reached)
    return sparsities


def calibration_steps(round_index: int, seed_steps: int, growing: bool = True) -> int:
    """Training steps before the pruning of round i = 0, 1, …: t · (i + 1) (Algorithm 1, line 3).

    If not `growing`, t before every round, as in the released research code.
    """
    return seed_steps * (round_index + 1 if growing else 1)


def mask_finding_share(
    rounds: int, calibration: float, epochs: float, growing: bool = True
) -> float:
    """Share of the budget that `rounds` rounds spend on calibration: t(1 + … + R) / T."""
    return sum(calibration_steps(i, 1, growing) for i in range(rounds)) * calibration / epochs


def round_ends(rounds: int, share: float, total: int, growing: bool = True) -> list[int]:
    """The steps at which rounds end that together take a `share` of `total` steps."""
    lengths = [calibration_steps(i, 1, growing) for i in range(rounds)]
    parts = [sum(lengths[: i + 1]) / sum(lengths) for i in range(rounds)]
    return [round(share * total * part) for part in parts]


@dataclass(frozen=True)
class Ramp:
    """Evenly spaced prunes whose sparsities rise by a cubic curve (Zhu & Gupta 2017).

    They go from `begin` to `end`, shares of the budget. The first prune, at `begin`, takes a share
    `first_cut` of the target, and the curve goes on from there. Without a first cut the curve
    begins at `begin` with nothing, so the first prune comes one interval later.
    """

    prunes: int
    first_cut: float
    begin: float
    end: float

    def sparsities(self, target: float) -> list[float]:
        """The sparsity after each prune, rounded as those of rounds."""
        ks, start = self._distances, self.first_cut * target
        before = [round(cubic(k, 0, ks[-1], start, target), 10) for k in ks[:-1]]
        return [*before, target]

    def ends(self, total: int) -> list[int]:
        """The step of each prune."""
        ks = self._distances
        shares = [self.begin + (self.end - self.begin) * k / max(1, ks[-1]) for k in ks]
        # Halves go up: to the nearest even number two neighbours could meet.
        return [math.floor(share * total + 0.5) for share in shares]

    def fit(self, total: int) -> int:
        """How many prunes `total` steps have room for, one a step."""
        # Rounded, as 0.7 - 0.1 is 0.5999999999999999 in floats.
        return int(round((self.end - self.begin) * total, 6)) + (self.first_cut > 0)

    @property
    def _distances(self) -> range:
        """How many distances each prune is behind `begin`."""
        return range(self.first_cut == 0, self.prunes + (self.first_cut == 0))


@dataclass(frozen=True)
class Schedule:
    """How long rounds are: by `calibration` epochs each, a share of the budget, or a ramp's."""

    calibration: float
    growing: bool
    mask_finding: float | None = None
    ramp: Ramp | None = None

    def ends(self, rounds: int, total: int, steps_per_epoch: int | None) -> list[int]:
        """The step at which each round ends."""
        if self.ramp is not None:
            return self.ramp.ends(total)
        if self.mask_finding is not None or steps_per_epoch is None:
            return round_ends(rounds, self.mask_finding or 0.0, total, self.growing)
        t = steps_of(self.calibration, steps_per_epoch)
        lengths = [calibration_steps(i, t, self.growing) for i in range(rounds)]
        return [sum(lengths[: i + 1]) for i in range(rounds)]


@dataclass(frozen=True, kw_only=True)
class OnTheWay(Method):
    """Prune at the ends of rounds, and train on: nothing restarts.

    A subclass has `find_mask(run, i, sparsity)`.
    """

    wants_gradients: ClassVar[bool] = False  # dense ones, of a round's last step

    compression_rate: float = setting(
        "s: sparsity added a round", RATE, section="isp",
        paper=ByFamily(0.1, 0.15), quick=0.2, library=0.2,
    )  # fmt: skip
    rate_of: str = setting("total | remaining", RATE_OF, section="isp", default="total")
    calibration: float = setting(
        "t in epochs; round i = 0, 1, … trains (i + 1) · t before it prunes",
        number(0, MOST_EPOCHS, low_too=False), section="isp",
        paper=0.1, quick=ByFamily(0.02, 0.2),
    )  # fmt: skip
    growing: bool = setting("false: every round trains t", BOOLEAN, section="isp", default=True)
    mask_finding: float | None = setting(
        "share of T that all rounds take together, instead of calibration",
        number(0, 1, high_too=False), section="isp", library=0.3,
    )  # fmt: skip

    schedule: str = setting(
        "rounds (of section isp) | cubic (of what follows)",
        one_of("rounds", CUBIC), default="rounds",
    )  # fmt: skip
    prunes: int = setting(
        "cubic: how often weights go, evenly spaced", integer(1, MOST_STEPS), default=20
    )
    first_cut: float = setting(
        "cubic: share of the target that goes at once, at begin",
        number(0, 1, high_too=False), default=0.0,
    )  # fmt: skip
    begin: float = setting(
        "cubic: share of T after which pruning begins", number(0, 1, high_too=False), default=0.0
    )
    end: float = setting(
        "cubic: share of T after which pruning ends",
        number(0, 1, low_too=False, high_too=False), default=0.5,
    )  # fmt: skip
    cycles: int = setting(
        "of the learning rate over T; 1: it never restarts", integer(1, MOST_STEPS), default=1
    )
    lowest_rate: float = setting(
        "cycles: share of learning_rate that each ends at", number(0, 1), default=0.01
    )

    @property
    def adjusts(self) -> bool:
        """Whether every round prunes to its exact sparsity; the last one does in any case."""
        return True

    @property
    def ranks_by(self) -> str:
        """The kind of scores that its masks are of."""
        return "magnitude"

    def ranks_by_gradients(self) -> bool:
        """Fisher scores are of gradients."""
        return self.ranks_by == "fisher"

    def ranks_by_moments(self) -> bool:
        """Fisher scores are of the optimiser's moments."""
        return self.ranks_by == "fisher"

    def find_mask(self, run: "Run", i: int, sparsity: float) -> "Mask | Cut":
        """Find round i's mask of exactly this sparsity, on the run as it is now.

        Args:
            run: The run.
            i: The round's number, from 0.
            sparsity: Share of the prunable weights to prune. In the last round it is `run.target`.

        Returns:
            A mask, or a cut, which also changes weights that stay.
        """
        raise TypeError(f"{type(self).__name__} does not say how it finds a round's mask")

    @property
    def ramp(self) -> Ramp | None:
        """The cubic ramp, where the schedule is one."""
        if self.schedule != CUBIC:
            return None
        return Ramp(self.prunes, self.first_cut, self.begin, self.end)

    def gradients_at(self, ends: list[int]) -> list[int]:
        """The steps whose dense gradients it looks at, where rounds end with these steps."""
        return [end - 1 for end in ends] if self.wants_gradients else []

    def gather(self, held: "Weights", gradients: "Weights") -> "Weights":
        """What is kept of these steps' gradients, in `run.gradients`: the last ones."""
        from instant_soup.training.pruner import latest

        return latest(held, gradients)

    def sparsities(self, target: float) -> list[float]:
        """The sparsity after each round."""
        if self.ramp is not None:
            return self.ramp.sparsities(target)
        return round_sparsities(target, self.compression_rate, self.rate_of)

    def ends(self, target: float, total: int, steps_per_epoch: int | None = None) -> list[int]:
        """The step at which each round ends."""
        return self.timing.ends(len(self.sparsities(target)), total, steps_per_epoch)

    @property
    def timing(self) -> Schedule:
        """How long the rounds are, by the settings that are read."""
        if self.ramp is not None:
            return Schedule(0.0, False, None, self.ramp)
        return Schedule(self.calibration, self.growing, self.mask_finding)

    @property
    def nested(self) -> bool:
        """Whether another target leaves all rounds but the last as they are."""
        return self.ramp is None and self.mask_finding is None

    def recipe(self, recipe: "Recipe") -> "Recipe":
        """With the row's cycles of the learning rate."""
        if self.cycles == 1:
            return recipe
        return replace(recipe, cycles=self.cycles, lowest_rate=self.lowest_rate)

    def idle(self) -> dict[str, str]:
        """What the other schedule reads, and what restarts read."""
        found = dict.fromkeys(OF_CUBIC, f"schedule: {CUBIC}")
        if self.schedule == CUBIC:
            found = dict.fromkeys(OF_ROUNDS, "schedule: rounds")
        elif self.mask_finding is not None:
            found["calibration"] = "mask_finding: null"
        found |= {"lowest_rate": "cycles: 2 or more"} if self.cycles == 1 else {}
        return super().idle() | found

    def share(self, target: float, epochs: float) -> float:
        """The share of the budget that goes by until the last round has pruned."""
        if self.ramp is not None:
            return self.end
        if self.mask_finding is not None:
            return self.mask_finding
        rounds = len(self.sparsities(target))
        return mask_finding_share(rounds, self.calibration, epochs, self.growing)

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that the rounds fit into the budget.

        Raises:
            UserError: If they do not.
        """
        self._check_idle()
        if self.ramp is not None:
            return self._check_ramp()
        rounds, share = len(self.sparsities(sparsity)), self.share(sparsity, epochs)
        if share >= 1:
            most = 1 / mask_finding_share(rounds, 1, epochs, self.growing)
            raise UserError(
                f"isp.calibration: {rounds} rounds of mask finding would take {share:.0%} of "
                f"training.epochs {epochs}; allowed: less than {most:.3g}"
            )

    def _check_idle(self) -> None:
        """UserError for a setting of the row's own that is given and not read."""
        fields = settings_of(type(self))
        for name, use in self.idle().items():
            value, key = getattr(self, name), key_of(type(self), name)
            if not fields[name].metadata["section"] and value != fields[name].default:
                section = key.removesuffix(name)
                raise UserError(f"{key}: {value} is for {section}{use}; allowed without it: null")

    def _check_ramp(self) -> None:
        """UserError where the ramp has no length, or its first cut is all of it."""
        check_before(self, "begin", "end")
        kind = type(self)
        begin, prunes = (key_of(kind, name) for name in ("begin", "prunes"))
        if self.prunes == 1 and self.first_cut:
            raise UserError(
                f"{prunes}: 1 leaves nothing to prune after {key_of(kind, 'first_cut')} "
                f"{self.first_cut}; allowed with it: 2 or more"
            )
        if self.ranks_by == "fisher" and self.begin == 0 and self.first_cut:
            raise UserError(
                f"{begin}: 0 prunes before the first step, when there are no gradients yet; "
                "allowed with Fisher scores: more"
            )

    def find(self, run: "Run", sparsity: float) -> None:
        """Algorithm 1: rounds of training and pruning."""
        run.target = sparsity
        targets, ends = self.sparsities(sparsity), self.round_ends(sparsity, run)
        for i, (target, end) in enumerate(zip(targets, ends, strict=True)):
            self.train_round(run, i, end)
            self.prune_round(run, i, target)

    def train_round(self, run: "Run", i: int, end: int) -> None:
        """Train up to the end of round i."""
        run.train(end, f"round {i}", keep_gradients=self.wants_gradients)

    def prune_round(self, run: "Run", i: int, target: float) -> None:
        """The end of round i: find its mask and take it."""
        key = [self.name, vars(self), i, target, target == run.target]
        run.prune(run.search(key, self.find_mask, run, i, target))

    def round_ends(self, sparsity: float, run: "Run | Steps") -> list[int]:
        """The step at which each round of a run ends."""
        per_epoch = run.steps_per_epoch if self.nested else None  # others are shares of the budget
        return self.ends(sparsity, run.total, per_epoch)

    def check_steps(self, sparsity: float, run: "Run | Steps") -> None:
        """Check that the rounds leave something of the budget, and do not come too soon.

        Fisher scores are of gradients, and there are none before the first step.

        Raises:
            UserError: If they leave nothing, or come too soon.
        """
        super().check_steps(sparsity, run)
        total, falling = run.total, run.total - run.warmup_steps
        if self.cycles > falling:
            raise UserError(
                f"{key_of(type(self), 'cycles')}: {self.cycles} in {falling} steps; "
                f"{enough(f'at most {falling}')}"
            )
        ends = self.round_ends(sparsity, run)
        if self.ramp is not None:
            self._check_prunes(self.ramp, ends, total)
        elif self.mask_finding is not None:
            self._check_share(self.mask_finding, ends, total)
        elif ends[-1] >= total:
            longest = (total - 1) // (ends[-1] // ends[0])  # first round, in steps
            raise UserError(
                f"isp.calibration: {self.calibration}: the {len(ends)} rounds take the whole "
                f"budget of {total} steps; {enough(at_most(longest / run.steps_per_epoch))}"
            )

    def _check_share(self, share: float, ends: list[int], total: int) -> None:
        """UserError where rounds that share a part of the budget come too soon, or take it all."""
        key, highest = f"isp.mask_finding: {share}", 1 - 1 / total
        if total <= len(ends):
            raise UserError(f"{key}: {len(ends)} rounds in {total} steps; {enough()}")
        if self.ranks_by == "fisher" and ends[0] == 0:
            lowest = sum(calibration_steps(i, 1, self.growing) for i in range(len(ends))) / total
            raise UserError(
                f"{key} prunes before the first of {total} steps, when there are no gradients yet; "
                f"{enough(at_least(lowest) if lowest <= highest else '')}"
            )
        if ends[-1] >= total:
            raise UserError(
                f"{key}: the {len(ends)} rounds take the whole budget of {total} steps; "
                f"{enough(at_most(highest))}"
            )

    def _check_prunes(self, ramp: Ramp, ends: list[int], total: int) -> None:
        """UserError where the ramp's prunes meet, or come before the first step or at the last."""
        kind = type(self)
        if len(set(ends)) < len(ends):
            most = ramp.fit(total)
            raise UserError(
                f"{key_of(kind, 'prunes')}: {self.prunes} do not fit into the steps from "
                f"{self.begin:g} to {self.end:g} of {total}; "
                f"{enough(f'at most {most}' if most else '')}"
            )
        if self.ranks_by == "fisher" and ends[0] == 0:
            raise UserError(
                f"{key_of(kind, 'begin')}: {self.begin} prunes before the first of {total} steps, "
                f"when there are no gradients yet; {enough(at_least(1 / total))}"
            )
        if ends[-1] >= total:
            raise UserError(
                f"{key_of(kind, 'end')}: {self.end} leaves none of {total} steps after the last "
                f"prune; {enough(at_most(1 - 1 / total))}"
            )

    def pruner(self, run: "Run", sparsity: float) -> "Pruner":
        """The same rounds as a pruner, for a training in another's loop."""
        from instant_soup.training.pruner import PrunesInRounds

        run.target = sparsity
        targets, ends = self.sparsities(sparsity), self.round_ends(sparsity, run)
        done = sum(end <= run.state.step for end in ends) if run.state.step else 0
        return PrunesInRounds(
            run.mask,
            ends,
            lambda i: run.agreed(self.find_mask(run, i, targets[i])),
            done=done,
            gradients_at=self.gradients_at(ends),
            gather=self.gather,
            aside=run.aside,
        )
