"""A teacher, or fewer retrained weights: each run beside the same one without."""

import pandas as pd
import pytest

from helpers import cells_of, ledger_with
from instant_soup.reports import axes
from instant_soup.reports.render import markdown

TEACHER = "training.teacher=dense"
ROWS = [
    *({"method": "dense", "target_sparsity": 0.0, "flops": 2.0, "seed": s} for s in (0, 1)),
    {"method": "gmp", "validation": 0.7, "value": 0.1},
    {"method": "gmp", "variant": "gmp.cycles=2", "validation": 0.8, "value": 0.7},
    {"method": "gmp", "variant": "gmp.cycles=2", "seed": 1, "value": 0.5},
]
TAUGHT = [
    {"method": "gmp", "variant": f"{TEACHER} gmp.cycles=2", "value": 0.75, "flops": 5.0},
    {"method": "gmp", "variant": f"{TEACHER} gmp.cycles=2", "seed": 1, "value": 0.65, "flops": 5.0},
]


def test_each_run_is_beside_the_same_one_without():
    found = axes.axes(ledger_with(*ROWS, *TAUGHT))
    assert list(found["without"]) == [0.7, 0.5] and set(found["block"]) == {TEACHER}
    assert list(found["cost"]) == [2.5, 2.5]
    chapter = axes.chapter(ledger_with(*ROWS, *TAUGHT))
    cells = cells_of(markdown([chapter]), "GMP\\* (cycles=2)")
    assert cells == ["70.00 ± 7.07 (n = 2)", "+10.00", "2.50"]


@pytest.mark.parametrize(
    "other",
    [
        {"method": "gmp", "variant": TEACHER},  # not what validation chose
        {"method": "gmp", "variant": f"{TEACHER} training.epochs=2 gmp.cycles=2"},
        {"method": "lamp", "variant": TEACHER},  # which has no trial
    ],
)
def test_other_runs_stay_out(other):
    rows = [*ROWS, *TAUGHT]
    pd.testing.assert_frame_equal(
        axes.axes(ledger_with(*rows, other)), axes.axes(ledger_with(*rows))
    )


def test_what_was_never_run_without_has_no_difference():
    taught = {"method": "gmp", "variant": f"{TEACHER} gmp.cycles=2", "target_sparsity": 0.9}
    table = markdown([axes.chapter(ledger_with(*ROWS, {**taught, "value": 0.6}))])
    assert cells_of(table, "GMP\\* (cycles=2)") == ["60.00", "1.00"]


def test_without_runs_there_is_no_table():
    assert not axes.chapter(ledger_with(*ROWS)).tables
