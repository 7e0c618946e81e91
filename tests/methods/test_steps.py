"""Settings that ask for more steps than a budget has: refused, and what a refusal allows is."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instant_soup.config.fields import make
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, Throughout
from instant_soup.methods.registry import method_named, methods
from instant_soup.methods.rounds import OnTheWay
from instant_soup.training.schedule import Steps, at_least, at_most

LAW = settings(deadline=None, max_examples=100)
TARGET = 0.8
CUBIC = {"schedule": "cubic", "begin": 0.1, "end": 0.5, "first_cut": 0.5, "prunes": 2}
NONE_YET = "there are no gradients yet"


def method_of(name: str, preset: str = "quick", **own: Any) -> Method:
    """A method with its settings in a preset, for texts."""
    return make(method_named(name), own, "bert", preset)


# Method, its settings, steps (in all, in an epoch, of warm-up), the refusal.
REFUSED = [
    ("dense", {}, Steps(10, 10, 10), "training.warmup: leaves none of 10 steps after the warm-up"),
    ("progressive", {"calibration": 0.5}, Steps(20, 10), "isp.calibration: 0.5: the 4 rounds take"),
    ("progressive", {"calibration": 0.5}, Steps(4, 10), "isp.calibration: 0.5: the 4 rounds take"),
    ("isp_plus", {"mask_finding": 0.3}, Steps(4, 4), "isp.mask_finding: 0.3: 4 rounds in 4 steps"),
    ("isp_plus", {"mask_finding": 0.04}, Steps(40, 40), f"isp.mask_finding: 0.04 .* {NONE_YET}"),
    ("isp_plus", {"mask_finding": 0.04}, Steps(5, 5), f"isp.mask_finding: 0.04 .* {NONE_YET}"),
    ("progressive", {"mask_finding": 0.99}, Steps(40, 40), "isp.mask_finding: 0.99: the 4 rounds"),
    ("isp_plus", {**CUBIC, "prunes": 7}, Steps(10, 10), "isp_plus.prunes: 7 do not fit .* of 10"),
    ("isp_plus", {**CUBIC, "begin": 0.01}, Steps(10, 10), f"isp_plus.begin: 0.01 .* {NONE_YET}"),
    ("progressive", {**CUBIC, "end": 0.99}, Steps(10, 10), "progressive.end: 0.99 leaves none of"),
    ("gmp", {"schedule": "rounds", "cycles": 41}, Steps(40, 40), "gmp.cycles: 41 in 40 steps"),
    ("isp_plus", {"cycles": 8}, Steps(40, 40, 35), "isp_plus.cycles: 8 in 5 steps"),
    ("rigl", {"every": 6}, Steps(8, 8), "rigl.every: 6 is more than the 5 steps"),
    ("platon", {"every": 10}, Steps(8, 8), "platon.every: 10 is more than the 6 steps"),
    ("platon", {"every": 1, "end": 0.8}, Steps(2, 2), "platon.end: 0.8 leaves none of 2 steps"),
    ("granet", {"every": 1}, Steps(2, 2), "granet.every: 1 is more than the 0 steps"),
    ("rigl", {"every": 1}, Steps(1, 1), "rigl.every: 1 is more than the 0 steps"),
    ("movement", {"end": 0.8}, Steps(1, 1), "movement.end: 0.8 leaves none of 1 steps"),
    ("granet", {"every": 6}, Steps(8, 8), "granet.every: 6 is more than the 5 steps"),
    ("movement", {"every": 9}, Steps(10, 10), "movement.every: 9 is more than the 5 steps"),
    ("bip", {"every": 9}, Steps(10, 10), "bip.every: 9 is more than the 7 steps"),
    ("lth_rewind", {}, Steps(8, 8), "imp.rewind: 0.05 goes back to step 0 of 8"),
    ("lth_rewind", {"rewind": 0.96}, Steps(10, 10), "imp.rewind: 0.96 goes back to step 10 of 10"),
    ("ac_dc", {}, Steps(8, 8), "ac_dc.phase: 0.05 of 8 steps is less than one"),
    (
        "sparse_soup",
        {"mask_finding": 0.3, "copies": 15, "last_phase": "shared"},
        Steps(20, 20),
        "sparse_soup.copies: 15 cannot share the 14 steps that the rounds leave of 20",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "own", "steps", "words"), REFUSED)
def test_too_few_steps_are_refused_and_what_is_allowed_instead_is(
    name: str, own: dict[str, Any], steps: Steps, words: str
) -> None:
    with pytest.raises(UserError, match=f"^{words}") as caught:
        method_of(name, **own).check_steps(TARGET, steps)
    told = str(caught.value)
    assert told.endswith("more steps in all (training.epochs)") and "\n" not in told
    named = re.search(r"allowed: at (most|least) ([\d.e-]+), or", told)
    place, setting = told.partition(":")[0].split(".")
    if named is not None and place != "training":
        value = float(named[2]) if "." in named[2] else int(named[2])
        method_of(name, **{**own, setting: value}).check_steps(TARGET, steps)
    more = Steps(100 * steps.total, steps.steps_per_epoch)
    method_of(name, **own).check_steps(TARGET, more)


def test_a_round_without_a_step_has_no_gradients_of_training() -> None:
    """Rounds end at the steps 1, 1, 2, 2 and 3."""
    own, steps = {"mask_finding": 0.3, "growing": False}, Steps(10, 10)
    with pytest.raises(UserError, match=r"^obert\.gradients: training .* allowed: fresh, or longe"):
        method_of("obert", gradients="training", **own).check_steps(0.9, steps)
    method_of("obert", gradients="fresh", **own).check_steps(0.9, steps)


@LAW
@given(
    st.sampled_from([*methods()]), st.sampled_from(["quick", "paper"]),
    st.integers(1, 60), st.integers(1, 60), st.integers(0, 60),
)  # fmt: skip
def test_what_passes_has_a_step_for_each_phase(
    name: str, preset: str, total: int, per_epoch: int, warmup: int
) -> None:
    steps = Steps(total, per_epoch, min(warmup, total))
    method = method_of(name, preset)
    try:
        method.check_steps(TARGET, steps)
    except UserError:
        return
    assert steps.warmup_steps < total
    if isinstance(method, OnTheWay):
        ends = method.round_ends(TARGET, steps)
        assert ends == sorted(ends) and ends[-1] < total
    if isinstance(method, Throughout):
        assert method.settled(total) < total


def test_a_share_that_a_message_allows_is_rounded_to_the_safe_side() -> None:
    assert (at_most(1 - 1 / 3), at_least(1 / 3)) == ("at most 0.666", "at least 0.334")
    assert (at_most(0.5), at_least(0.05)) == ("at most 0.5", "at least 0.05")
    assert at_most(0.0) == ""
