"""stages/tables.py: equal results make equal files, in whatever order they are found."""

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import ROOT
from instant_soup.files import write_yaml
from instant_soup.reports import ledger, numbers


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script, in a copy of the committed results and curves."""
    for name in ("results", "curves"):
        shutil.copytree(ROOT / "reports" / name, tmp_path / "reports" / name)
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(**runpy.run_path(str(ROOT / "stages/tables.py")))


def plan(*methods: str) -> None:
    write_yaml("models/plan/tables.yaml", {"methods": list(methods)})


def test_the_order_of_rows_is_a_law(stage: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    in_a_clone = stage.methods_of_this_run()
    assert in_a_clone == ["dense", "one_shot", "isp", "isp_plus"]
    plan(*reversed(in_a_clone))
    assert stage.methods_of_this_run() == in_a_clone
    plan("snip", "isp", "dense")
    assert stage.methods_of_this_run() == ["dense", "isp"]
    assert capsys.readouterr().err == "warning: no result of snip yet: `dvc repro`\n"


def test_a_run_without_isp_has_its_other_figures(stage: SimpleNamespace):
    results = ledger.read_results("reports/results", ["dense", "one_shot"])
    curves = numbers.write(stage.REPORTS, results)
    drawn = stage.draw_figures(results, ledger.merge_ledger("ledger.csv", results, "v"), curves)
    names = {path.name for path in drawn}
    assert {"layer_sparsity.png", "isp_rounds.png"} <= names  # empty, not that of another run
    assert all(path.exists() for path in drawn)


def test_a_fresh_clone_writes_the_numbers_that_are_committed(stage: SimpleNamespace):
    results = ledger.read_results("reports/results", stage.methods_of_this_run())
    numbers.write(stage.REPORTS, results)
    for name in ("metrics.json", "curves.csv", "isp_rounds.csv"):
        made, committed = Path("reports") / name, ROOT / "reports" / name
        assert made.read_text() == committed.read_text(), name
