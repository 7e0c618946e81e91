"""The comparison of the field's methods: what validation chooses, and what stands beside what."""

from typing import Any

import pandas as pd
import pytest

from helpers import ROOT, ledger_with, run_command
from instant_soup.files import read_yaml
from instant_soup.reports import methods
from instant_soup.reports.ledger import read_ledger
from instant_soup.reports.origins import apart_by_origin
from instant_soup.reports.tables import write_tables


def test_validation_chooses_and_the_default_wins_ties():
    ledger = ledger_with(
        {"method": "gmp", "validation": 0.71},
        {"method": "gmp", "variant": "gmp.cycles=2", "validation": 0.75, "value": 0.1},
        {"method": "gmp", "variant": "gmp.cycles=1", "validation": 0.74, "value": 0.9},
        {"method": "rigl", "variant": "rigl.regrow=0.1", "validation": 0.72},
        {"method": "rigl", "validation": 0.72},
        {"method": "lamp", "validation": 0.1},
        # None of these is a trial.
        {"method": "lamp", "variant": "lamp.score=snip", "seed": 1},
        {"method": "lamp", "variant": "lamp.score=snip", "target_sparsity": 0.9},
        {"method": "lamp", "variant": "lamp.score=snip training.teacher=dense"},
        {"method": "lamp", "variant": "lamp.score=snip", "dataset": "reviews-rating"},
        {"method": "lamp", "variant": "lamp.score=fisher", "validation": float("nan")},
        {"method": "lamp", "variant": "lamp.score=snip", "processor": "B"},
    )
    assert methods.chosen(ledger) == {"gmp": "gmp.cycles=2", "rigl": "", "lamp": ""}


def test_the_committed_comparison_has_what_the_committed_trials_chose(tmp_path):
    trials = tmp_path / "results.csv"
    trials.write_text(run_command(ROOT, "git", "show", "HEAD:reports/results.csv"))
    chosen = " ".join(methods.chosen(apart_by_origin(read_ledger(trials))).values()).split()
    settings = read_yaml(ROOT / "grids/methods.yaml")["settings"]
    written = {f"{key}={str(value).lower()}" for key, value in settings.items()}
    assert written == set(chosen)


@pytest.fixture
def field() -> pd.DataFrame:
    names = ["isp_plus", "gmp", "rigl", "lamp", "random", "wanda", "bip", "smp", "cap", "platon"]
    rows: list[dict[str, Any]] = [{"method": name} for name in names]
    rows += [
        {"method": "dense", "target_sparsity": 0.0, "flops": 1.0},
        {"method": "gmp", "variant": "gmp.cycles=2", "validation": 0.9, "value": 0.9},
        {"method": "isp", "processor": "B"},
        # Under a teacher nobody but ISP+ was measured.
        {"method": "isp_plus", "variant": "training.teacher=dense"},
        {"method": "isp_plus", "target_sparsity": 0.9},
    ]
    return ledger_with(*rows)


def test_a_column_has_chosen_settings_of_one_processor(field):
    found = methods.comparison(field)
    assert set(found["target_sparsity"]) == {0.8} and set(found["shared"]) == {""}
    assert len(found) == found["method"].nunique() == 10 and "isp" not in set(found["method"])
    assert found.set_index("method")["variant"]["gmp"] == "gmp.cycles=2"
    assert set(found["cost"]) == {2.0}
    # Where the chosen settings were not run the defaults stand.
    elsewhere = field[~field["variant"].str.startswith("gmp.")].assign(dataset="reviews-rating")
    both = methods.comparison(pd.concat([field, elsewhere]))
    assert dict(both[both["method"] == "gmp"][["dataset", "own"]].to_numpy()) == {
        "reviews-rating": "",
        "reviews-sentiment": "gmp.cycles=2",
    }


def test_tasks_with_settings_of_their_own_are_there_and_cost_what_they_do(field):
    """Those that a local task's rows all share: data.train_rows, more epochs."""
    longer = field.assign(dataset="mrpc@local")
    longer["variant"] = ("training.epochs=2 " + longer["variant"]).str.strip()
    longer.loc[longer["method"] == "dense", "flops"] = 2.0
    more_seeds = longer[longer["method"] != "dense"].assign(seed=1)  # without a dense network
    found = methods.comparison(pd.concat([field, longer, more_seeds]))
    own = found[found["dataset"] == "mrpc@local"]
    assert set(own["shared"]) == {"training.epochs=2"} and set(own["seed"]) == {0, 1}
    assert set(own.loc[own["seed"] == 0, "cost"]) == {1.0}
    assert own.loc[own["seed"] == 1, "cost"].isna().all()


def test_a_teacher_is_paid_in_fine_tunings_of_the_network_without(field):
    runs = methods.by_settings(field)
    assert set(runs.loc[runs["shared"] == "training.teacher=dense", "cost"]) == {2.0}


def test_files(field, tmp_path):
    def write(ledger) -> None:
        write_tables(tmp_path, ledger, {"methods": methods.chapters(ledger)})

    write(field)
    markdown, csv = tmp_path / "methods.md", tmp_path / "methods.csv"
    text = markdown.read_text()
    assert text.index("GMP\\* (cycles=2)") < text.index("| BiP")  # the best first
    assert "+20.00" in text and "**90.00**" in text
    assert len(pd.read_csv(csv)) == 10
    before = [path.read_bytes() for path in (markdown, csv)]
    write(field[::-1])
    assert [path.read_bytes() for path in (markdown, csv)] == before
    write(field[:0])
    assert "No results yet." in markdown.read_text()
