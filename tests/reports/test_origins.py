"""Which rows compare: a task's rows of each origin stand apart."""

import pandas as pd
import pytest

from helpers import ledger_of, of_seeds, result
from instant_soup.reports.origins import apart_by_origin, model_and_origin

OLD, NEW = {"finished": "2026-11-20T10:00:00+00:00"}, {"finished": "2026-11-21T10:00:00+00:00"}
HERE = {"processor": "A", "base": "aaaa", "precision": "bf16"}


def test_what_does_not_compare_has_models_of_its_own(tmp_path):
    """Running clip-glyph once must not take the committed grids out of the tables."""
    runs = ledger_of(
        tmp_path,
        *of_seeds("dense", 0.90, 0.91, **OLD, **HERE),
        *of_seeds("isp", 0.80, 0.81, **OLD, **HERE),
        *(result(m, 0.5, **NEW, **HERE | {"base": "bbbb"}) for m in ("dense", "isp")),
        result("isp", 0.4, **NEW, **HERE | {"processor": "B"}),
        result("isp", 0.3, **NEW, **HERE | {"processor": "B"}, target_sparsity=0.9),
        result("snip", 0.2, **OLD, **HERE | {"base": "", "precision": "", "processor": ""}),
    )
    apart = apart_by_origin(runs)
    assert list(apart.index) == list(runs.index) and set(runs["model"]) == {"minilm"}
    means = apart.groupby(["model", "method", "target_sparsity"])["value"].mean()
    nowhere = "with weights not recorded in a precision not recorded on an unrecorded processor"
    assert means.round(3).to_dict() == {
        ("minilm", "dense", 0.0): 0.905,
        ("minilm", "isp", 0.7): 0.805,
        ("minilm (run on B)", "isp", 0.7): 0.4,
        ("minilm (run on B)", "isp", 0.9): 0.3,  # also where nothing else was run
        ("minilm (run with weights bbbb)", "dense", 0.0): 0.5,
        ("minilm (run with weights bbbb)", "isp", 0.7): 0.5,
        (f"minilm (run {nowhere})", "snip", 0.7): 0.2,
    }
    pd.testing.assert_frame_equal(apart_by_origin(apart), apart)
    assert apart_by_origin(runs[:0]).empty


@pytest.mark.parametrize("seed", range(3))
def test_the_newest_of_equally_many_is_the_main_one(tmp_path, seed):
    runs = ledger_of(
        tmp_path,
        *of_seeds("isp", 0.1, 0.2, processor="A", **NEW),
        *of_seeds("isp", 0.3, 0.4, processor="B", **OLD),
    ).sample(frac=1, random_state=seed)
    apart = apart_by_origin(runs)
    assert set(apart.loc[apart["model"] == "minilm", "processor"]) == {"A"}


def test_what_asks_for_another_origin_is_not_apart(tmp_path):
    runs = ledger_of(
        tmp_path,
        *of_seeds("isp", 0.1, 0.2, **HERE),
        result("isp", variant="training.precision=fp32", **HERE | {"precision": "fp32"}),
        result("isp", variant="isp.rounds=2 pretraining.seed=1", **HERE | {"base": "bbbb"}),
    )
    assert set(apart_by_origin(runs)["model"]) == {"minilm"}


def test_a_name_tells_its_origin():
    assert model_and_origin("minilm (run on B (AVX2))") == ("minilm", "on B (AVX2)")
    assert model_and_origin("minilm") == ("minilm", "")
