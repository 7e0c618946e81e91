"""Settings that ask for more steps than the data give are refused before the first step."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT, make_project, run_script, training_for
from instant_soup.errors import UserError
from instant_soup.files import read_yaml, write_yaml
from instant_soup.pipeline import plan as plan_module
from instant_soup.pipeline.plan import budget_of
from instant_soup.pipeline.run import PipelineRun
from instant_soup.pipeline.stage_files import PLAN, TrainStage
from instant_soup.pipeline.workspace import START, load_start

TOO_MANY: dict[str, Any] = {"methods": ["gmp"], "gmp": {"prunes": 1000}}
MESSAGE = r"^params\.yaml: gmp\.prunes: 1000 do not fit into .* of (\d+); allowed: at most \d+, or"


def write_params(**changes: Any) -> None:
    """A params.yaml: the repository's with some keys, and keys of sections, changed."""
    params = copy.deepcopy(read_yaml(ROOT / "params.yaml"))
    for key, value in changes.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    write_yaml("params.yaml", params)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "STAGES", ROOT / "stages")
    return tmp_path


def test_the_plan_says_how_long_a_training_is() -> None:
    budget = budget_of(read_yaml(ROOT / "params.yaml"))
    # Four rounds of three denoisers, ten steps each.
    assert budget.told(8066) == "training: 151 steps; ISP's denoisers take 120 more"
    few = "; 18 are few: a higher training.epochs (0.6 now) makes more"
    assert budget.told(960) == f"training: 18 steps; ISP's denoisers take 120 more{few}"
    assert replace(budget, look_ahead=0).told(8066) == "training: 151 steps"


@pytest.mark.parametrize(
    ("model", "dataset", "steps"),
    [
        ("minilm", "reviews-sentiment", "151"),  # 0.6 epochs of 8,066 rows, in batches of 32
        ("clip-glyph", "mnist-sample", "162"),  # 6 epochs of 3,500 rows, in batches of 128
    ],
)
def test_the_plan_refuses_them_where_it_knows_the_rows(
    here: Path, model: str, dataset: str, steps: str
) -> None:
    write_params(model=model, dataset=dataset, **TOO_MANY)
    with pytest.raises(UserError, match=MESSAGE.replace(r"(\d+)", steps)):
        run_script("plan")
    assert not PLAN.exists()


def test_the_plan_knows_a_local_datasets_rows(here: Path, tiny_data: Path) -> None:
    write_params(
        dataset=f"local:{tiny_data}", data={"train_rows": 64}, training={"epochs": 20}, **TOO_MANY
    )
    with pytest.raises(UserError, match=MESSAGE.replace(r"(\d+)", "40")):
        run_script("plan")


def test_a_stage_that_trains_refuses_what_the_plan_could_not_know(
    here: Path, tiny_bert: Path, tiny_data: Path
) -> None:
    """The plan refuses nothing of a hub's dataset, whose rows nobody has read."""
    write_params(dataset="sst2", model="bert-base", **TOO_MANY)
    run_script("plan")
    make_project(here, tiny_bert, tiny_data, training=training_for(4), **TOO_MANY)
    stage = TrainStage.read(PLAN / "dense.yaml")
    with pytest.raises(UserError, match=MESSAGE):
        PipelineRun(*load_start(START), stage.recipe, code="of the dense row's stage")
