"""The forecast of a run: steps and FLOPs out of the ledger, times this machine's speed."""

from pathlib import Path

import pytest
import torch

from helpers import ROOT, ledger_of, result
from instant_soup.files import read_yaml, yaml_of
from instant_soup.pipeline import outlook
from instant_soup.pipeline.plan import Params, check, plan
from instant_soup.reports import forecast

SHARED = ROOT.parent / "shared/data"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The default run in an empty folder, by the preset's budget of 0.6 epochs of batches of 32."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return check(read_yaml(ROOT / "params.yaml"))


def texts_of(**changes: object) -> dict[str, str]:
    raw = read_yaml(ROOT / "params.yaml") | changes
    return {name: yaml_of(contents) for name, contents in plan(raw).items()}


def earlier_run(folder: Path, **changes: object) -> None:
    """A ledger with a dense run of 150 steps of 2 TFLOP each."""
    cost = {"steps": 150, "search_steps": 0, "flops": 3e14, "sparse_flops": 3e14, "seconds": 1.0}
    own = {"model": "minilm", "dataset": "reviews-sentiment", "preset": "quick", "variant": ""}
    ledger_of(folder / "reports", result("dense", cost=cost, **own | changes))


def test_rows_and_flops_of_a_step_are_the_ledgers(tmp_path: Path, params: Params):
    earlier_run(tmp_path)
    rows, flops = forecast.of_ledger(params)
    assert rows == {"train": 250 * 32, "validation": 500, "test": 2000} and flops == 2e12


def test_runs_with_the_same_settings_tell_the_most(tmp_path: Path, params: Params):
    """Of a local copy of SST-2, two epochs in batches of 16."""
    folder = SHARED / "glue/sst2"
    if not folder.exists():
        pytest.skip("needs shared/data/glue")
    raw = read_yaml(ROOT / "params.yaml") | {"dataset": "sst2"}
    raw["data"] = {**(raw["data"] or {}), "path": str(folder)}
    raw["training"] = {**(raw["training"] or {}), "epochs": 2, "batch_size": 16}
    variant = "training.epochs=2 training.batch_size=16"
    earlier_run(tmp_path, dataset="sst2@local", variant=variant)
    rows, flops = forecast.of_ledger(check(raw))
    assert rows["train"] == 75 * 16 and flops == 2e12


@pytest.mark.parametrize("other", [{"model": "bert-base"}, {"variant": "training.epochs=3"}])
def test_runs_of_other_things_tell_nothing(tmp_path: Path, params: Params, other: dict[str, str]):
    earlier_run(tmp_path, **other)
    assert forecast.of_ledger(params) is None
    assert "no earlier run of minilm on reviews-sentiment" in forecast.forecast(params, texts_of())


def test_time_is_flops_by_speed(tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch):
    earlier_run(tmp_path)
    monkeypatch.setattr(
        forecast, "training_speed", lambda precision: (5e11 / forecast.SHARE["bf16"], 0.25)
    )
    monkeypatch.setattr("instant_soup.training.loop.resolve_precision", lambda wanted: "bf16")
    step, how = forecast.measured_step(2e12, "auto")
    assert step == pytest.approx(4.0)
    assert how == (
        "from a second of bf16 training; longer while other work takes 75 % of the cores, as now"
    )
    texts = texts_of()
    left = outlook.left_of(texts, "", {"train": 8000, "validation": 500, "test": 2000})
    minutes = round((outlook.START_SECONDS + left.seconds(4.0)) / 60)
    assert forecast.forecast(params, texts).startswith(
        f"About {minutes} min on this machine: {left.stages} stages, {left.steps:.0f} training "
        "steps of 4 s (from"
    )


def test_a_run_that_trains_nothing_says_so(tmp_path: Path, params: Params):
    earlier_run(tmp_path)
    texts = texts_of()
    finished = "".join(
        f"path: models/plan/{name}.yaml\n hash: md5\n md5: {outlook.md5(text)}\n"
        for name, text in texts.items()
        if name != "tables"
    )
    (tmp_path / "dvc.lock").write_text(finished)
    said = forecast.forecast(params, texts)
    assert said.startswith("About ") and said.endswith(": 1 stage, no training.")


def test_nothing_left_is_nothing_said(params: Params, tmp_path: Path):
    texts = texts_of()
    lock = "".join(
        f"path: models/plan/{name}.yaml\n hash: md5\n md5: {outlook.md5(text)}\n"
        for name, text in texts.items()
    )
    (tmp_path / "dvc.lock").write_text(lock)
    assert forecast.forecast(params, texts) == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_speed_is_a_speed_and_leaves_threads_alone(precision: str):
    threads = torch.get_num_threads()
    speed, share = forecast.training_speed(precision, seconds=0.01)
    assert speed > 1e6 and 0 < share <= 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("given", ["model", "=minilm", ""])
def test_what_is_no_setting_is_refused_in_a_line(given: str, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["forecast", "-S", given])
    with pytest.raises(SystemExit):
        forecast.main()
    assert f"{given!r}; allowed: KEY=VALUE, as in model=clip-glyph" in capsys.readouterr().err


def test_a_run_with_other_settings_is_forecast_with_them(monkeypatch: pytest.MonkeyPatch):
    """`make repro FAMILY=clip` forecasts before `dvc exp run -S …` writes the settings."""
    seen = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(forecast, "forecast", lambda params, texts: seen.append(params.top) or "")
    given = ["-S", "model=clip-glyph", "-S", "dataset=mnist-sample", "-S", "seed=3"]
    monkeypatch.setattr("sys.argv", ["forecast", *given])
    forecast.main()
    assert (seen[0].model, seen[0].dataset, seen[0].seed) == ("clip-glyph", "mnist-sample", 3)
