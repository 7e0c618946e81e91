"""What is left of a run: which stages, how many steps, and how long by a step's time."""

import json
from pathlib import Path

import pytest
import yaml

from helpers import ROOT
from instant_soup.files import read_yaml, write_json, yaml_of
from instant_soup.pipeline import outlook
from instant_soup.pipeline.plan import plan

# 20 batches of 32 an epoch; the test split is two steps, the validation split half of one.
ROWS = {"train": 640, "validation": 48, "test": 192}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """The settings files of a run of 20 steps: ISP to 40 % in two rounds, and two more rows."""
    raw = read_yaml(ROOT / "params.yaml")
    raw |= {"sparsity": 0.4, "methods": ["one_shot", "lth"], "exports": []}
    raw["training"] |= {"epochs": 1, "batch_size": 32, "evaluations": 4}
    raw["isp"] |= {"calibration": 0.1, "look_ahead": 4, "denoisers": 3}
    return {name: yaml_of(contents) for name, contents in plan(raw).items()}


def lock_of(texts: dict[str, str], *names: str) -> str:
    """A dvc.lock in which the stages of some settings files are finished."""
    entries = [
        f"    - path: models/plan/{name}.yaml\n      hash: md5\n"
        f"      md5: {outlook.md5(texts[name])}\n      size: 7\n"
        for name in names
    ]
    return "schema: '2.0'\nstages:\n" + "".join(entries)


def test_steps_by_hand(texts: dict[str, str]):
    # Rounds train 2 and 4 of 20 steps, and look ahead 3 times 4 steps each; LTH trains twice.
    # Four validations in 20 steps, and one at either side of a round's prune.
    expected = {
        **{"dense": 22, "weak_masks_0": 12, "weak_masks_1": 12},
        **{"calibrate_0": 2 + 0.2 + 1, "calibrate_1": 4 + 0.4 + 1, "retrain_isp": 14 + 1.4},
        **{"retrain_one_shot": 22, "retrain_lth": 22, "ticket_lth": 22},
        **{f"evaluate_{row}": 2 for row in ("dense", "isp", "one_shot", "lth")},
    }
    whole = outlook.left_of(texts, "", ROWS)
    assert whole.steps == whole.of_steps == pytest.approx(sum(expected.values()))
    contents = {name: read(text) for name, text in texts.items()}
    for name, steps in expected.items():
        assert outlook.steps_of_stage(name, contents, ROWS) == pytest.approx(steps), name


def read(text: str) -> dict:
    return yaml.safe_load(text)


def test_what_is_left_is_what_the_lock_has_not(texts: dict[str, str]):
    assert outlook.names_left(texts, lock_of(texts, *texts)) == []
    every = outlook.names_left(texts, "")
    assert len(every) == 22 and "calibrate_2" not in every  # as it is not needed
    without_first = outlook.names_left(texts, lock_of(texts, *(n for n in texts if n != "encode")))
    assert without_first == [name for name in every if name not in ("data", "base")]
    behind = outlook.names_left(texts, lock_of(texts, *(n for n in texts if n != "weak_masks_0")))
    assert behind == [
        *("weak_masks_0", "soup_0", "calibrate_1", "weak_masks_1", "soup_1"),
        *("retrain_isp", "evaluate_isp"),
    ]
    changed = texts | {"ticket_lth": texts["ticket_lth"] + "# another\n"}
    left = outlook.names_left(changed, lock_of(texts, *texts))
    assert left == ["ticket_lth", "retrain_lth", "evaluate_lth"]


def test_time_is_steps_and_stages():
    left = outlook.Left(steps=100, stages=5, idle=20, of_steps=300)
    stages = 5 * outlook.STAGE_SECONDS + 20 * outlook.IDLE_SECONDS + outlook.TABLES_SECONDS
    assert left.seconds(0.5) == pytest.approx(50 + stages)


def test_stages_that_pass_by_count_until_they_have(texts: dict[str, str]):
    idle = [name for name, text in texts.items() if read(text) == outlook.IDLE]
    assert outlook.left_of(texts, "", ROWS).idle == len(idle) > 20
    assert outlook.left_of(texts, lock_of(texts, *idle[2:]), ROWS).idle == 2


def test_prunes_on_the_way_and_a_pre_training_count():
    """Each of thirty prunes has a validation at either side; a small batch is less of a step."""
    raw = read_yaml(ROOT / "params.yaml") | {"methods": ["gmp"], "exports": []}
    raw |= {"model": "clip-glyph", "dataset": "mnist-sample"}
    raw["training"] |= {"batch_size": 64}
    raw["pretraining"] |= {"steps": 100, "batch_size": 32}
    files = plan(raw)
    assert outlook.steps_of_stage("ticket_gmp", files, ROWS) == pytest.approx(2 * 30 * 48 / 64 / 3)
    assert outlook.steps_of_stage("pretrain_clip", files, ROWS) == 50


def test_a_stage_says_what_is_left_and_how_long_once_a_step_is_timed(
    texts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    outlook.tell()  # outside DVC there is nothing to say
    outlook.note_pace(100, 1.0)
    monkeypatch.setenv("DVC_STAGE", "dense_finetune")
    for name, text in texts.items():
        path = Path(f"models/plan/{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_json("data/encoded/info.json", {"rows": ROWS})
    Path("dvc.lock").write_text(lock_of(texts, *outlook.FIRST))
    outlook.tell()
    outlook.note_pace(outlook.LEAST_STEPS - 1, 1.0)  # too few to tell
    assert not list(tmp_path.rglob("pace.json"))
    outlook.note_pace(20, 60.0)
    outlook.tell()
    Path("models/plan/base.yaml").write_text("name: another\n")
    outlook.tell()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "left of the run: 144 of 144 steps, 18 stages"
    assert said[1] == "left of the run: 144 of 144 steps, 18 stages, about 8 min"
    assert said[2].endswith("stages")  # the pace was another model's
    assert json.loads(next(tmp_path.rglob("pace.json")).read_text())["step_seconds"] == 3.0
