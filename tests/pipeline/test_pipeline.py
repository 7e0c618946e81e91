"""The real pipeline, run by DVC on a tiny model and little data: what runs, and what comes out.

One project is made and run once. Then experiments change one thing each, in DVC's queue two at a
time, and each must run what that thing affects and nothing else. Of other settings and of changed
sources it is asked what DVC would run.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from helpers import (
    PIPELINE_PARAMS,
    ROOT,
    environment,
    make_repository,
    make_table,
    run_command,
    stages_run,
)
from instant_soup.files import read_yaml, write_yaml
from instant_soup.models import base as models
from instant_soup.pipeline import jobs
from instant_soup.sparsity import masks
from instant_soup.training.state import load_state

ISP = ("calibrate", "weak_masks", "mask_soup")
METHODS = ["one_shot", "random", "snip", "isp_plus"]
OF_ROWS = {f"{s}@{m}" for s in ("find_ticket", "retrain", "evaluate_method") for m in METHODS}


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_bert: Path, tiny_data: Path) -> Path:
    """A project whose pipeline has run once; what `dvc repro` printed is in repro.txt."""
    folder = tmp_path_factory.mktemp("project") / "soup"
    make_repository(folder, tiny_bert, tiny_data, methods=METHODS)
    output = run_command(folder, "dvc", "repro")
    (folder.parent / "repro.txt").write_text(output)
    run_command(folder, "git", "add", "-A")
    run_command(folder, "git", "commit", "-qm", "run")
    return folder


EXPERIMENTS = {
    "sparser": ["sparsity=0.8"],
    "more": ["isp.denoisers=3"],
    "edited": [],  # a method's file
}


@pytest.fixture(scope="module")
def queued(project: Path) -> dict[str, str]:
    """The experiments' outputs by name, after running all of them two at a time."""
    for name, changes in EXPERIMENTS.items():
        arguments = [word for change in changes for word in ("-S", change)]
        with edited(project, *["src/instant_soup/methods/snip.py"] * (name == "edited")):
            run_command(project, "dvc", "exp", "run", "--queue", "-n", name, *arguments)
    with open(project.parent / "queue.txt", "w") as said:  # no pipe: workers may outlive DVC
        command = ["dvc", "exp", "run", "--run-all", "-j", "2"]
        subprocess.run(command, cwd=project, env=environment(), stdout=said, stderr=said)
    logs = {name: run_command(project, "dvc", "queue", "logs", name) for name in EXPERIMENTS}
    status = run_command(project, "dvc", "queue", "status")
    # A worker that has lost a race for a message to another one never ends of itself.
    # By their folder, as a number in one of DVC's files may be another process's by now.
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            own = Path(os.readlink(process / "cwd")).is_relative_to(project)
            if own and "queue-worker" in (process / "cmdline").read_text():
                os.kill(int(process.name), signal.SIGTERM)
    assert status.count("Success") == len(EXPERIMENTS), status + "".join(logs.values())[-4000:]
    return logs


@contextmanager
def edited(project: Path, *names: str, line: str = "EDITED = True") -> Iterator[None]:
    """Some files of the project with a line more at their end, for a while."""
    before = {name: (project / name).read_text() for name in names}
    for name, text in before.items():
        (project / name).write_text(f"{text}{line}\n")
    try:
        yield
    finally:
        for name, text in before.items():
            (project / name).write_text(text)


def what_would_run(project: Path) -> tuple[set[str], set[str]]:
    """The stages that the plan of the project as it is now changes, and these with all behind."""
    plan, before = project / "models/plan", project.parent / "plan-before"
    plan.rename(before)
    try:
        run_command(project, "env", "PYTHONPATH=src", sys.executable, "stages/plan.py")
        with chdir(project):
            needs, changed = jobs.changes()
    finally:
        shutil.rmtree(plan, ignore_errors=True)
        before.rename(plan)
    changed -= {"plan"}
    return changed, set(jobs.affected_stages(needs, changed))


def affected_by(project: Path, **changes: Any) -> set[str]:
    """The stages that other settings change, with all behind them."""
    params = project / "params.yaml"
    before = params.read_text()
    values = read_yaml(params)
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    write_yaml(params, values)
    try:
        return {"plan"} | what_would_run(project)[1]
    finally:
        params.write_text(before)


def result_of(project: Path, experiment: str, method: str) -> dict:
    """A result file as an experiment committed it."""
    listed = run_command(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps")
    ref = next(line for line in listed.splitlines() if line.endswith(f"/{experiment}"))
    return json.loads(run_command(project, "git", "show", f"{ref}:reports/results/{method}.json"))


def stages(*patterns: str, of: set[str]) -> set[str]:
    """The stages whose names begin with one of the patterns."""
    return {stage for stage in of if stage.startswith(patterns)}


def test_first_run_runs_every_stage_and_says_where_the_tables_are(project: Path):
    output = (project.parent / "repro.txt").read_text()
    listed = run_command(project, "dvc", "stage", "list", "--name-only").split()
    assert stages_run(output) == set(listed)
    assert "reports/tables/results.md" in output


def test_second_run_runs_nothing_but_the_plan(project: Path):
    assert stages_run(run_command(project, "dvc", "repro")) == {"plan"}


def test_no_output_is_a_link_into_the_cache(project: Path):
    """So that one damaged in place is healthy there."""
    files = [path for path in (project / "models").rglob("*") if not path.is_dir()]
    files += (project / "data").rglob("*.safetensors")
    assert len(files) > 20
    assert [f for f in files if f.is_symlink() or f.stat().st_nlink > 1] == []
    damaged = project / "models/isp/round_0/state/weights.safetensors"
    healthy = damaged.read_bytes()
    with open(damaged, "r+b") as file:
        file.seek(2000)
        file.write(b"damaged")
    found = json.loads(run_command(project, "dvc", "status", "--json", "calibrate@0"))
    assert found == {"calibrate@0": [{"changed outs": {"models/isp/round_0/state": "modified"}}]}
    run_command(project, "dvc", "checkout", "-q", "--force", str(damaged.parent))
    assert damaged.read_bytes() == healthy


def test_what_a_killed_dvc_leaves_of_a_copy_changes_no_stage(project: Path):
    left = project / "models/isp/round_0/.jR2mT8-xw3LQ.tmp"
    left.write_text("half")
    assert json.loads(run_command(project, "dvc", "status", "--json", "retrain_isp")) == {}
    left.unlink()


def test_results_have_exact_sparsity_and_the_whole_budget(project: Path):
    prunable = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    for method in ("isp", "dense", *METHODS):
        result = json.loads((project / f"reports/results/{method}.json").read_text())
        pruned = 0 if method == "dense" else int(0.6 * prunable + 0.5)
        assert (result["prunable_weights"], result["pruned_weights"]) == (prunable, pruned)
        assert result["base"] == models.digest(models.pretrained_prunable(project / "models/base"))
        assert result["cost"]["steps"] == 20  # one epoch of 160 rows in batches of 8
        assert result["cost"]["search_steps"] == (8 if method == "isp" else 0)
        weights = load_state(project / f"models/retrained/{method}/state", False).weights
        mask = masks.load(project / f"models/retrained/{method}/mask.safetensors")
        assert sum(int((weights[n] == 0).sum()) for n in mask) == pruned


def test_rounds_are_nested_and_their_training_grows(project: Path):
    result = json.loads((project / "reports/results/isp.json").read_text())
    assert [r["steps"] for r in result["rounds"]] == [2, 4]
    first, second = (masks.load(project / f"models/isp/round_{i}/mask.safetensors") for i in (0, 1))
    assert all((first[name] | ~second[name]).all() for name in first)
    assert masks.sparsity(first) == pytest.approx(0.3, abs=1e-4)


def test_stages_equal_one_uninterrupted_process_bit_for_bit(project: Path):
    single = run_command(project, sys.executable, str(ROOT / "tests/single_process.py"))
    expected = torch.load(single.strip().splitlines()[-1], weights_only=True)
    weights = load_state(project / "models/retrained/isp/state", False).weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_higher_sparsity_reruns_only_what_comes_after_the_last_round(queued: dict[str, str]):
    third_round = {"calibrate@2", "weak_masks@2", "mask_soup@2"}
    # They hang on the round before, and pass by.
    behind = {"calibrate@3", "weak_masks@3", "mask_soup@3", "ticket_of_isp@random_init"}
    assert stages_run(queued["sparser"]) == third_round | behind | OF_ROWS | {
        "plan",
        "retrain_isp",
        "evaluate@isp",
        "tables",
    }


def test_other_rows_keep_their_rounds_too(queued: dict[str, str]):
    """Of ISP+, whose rounds are in one stage: what it has trained it takes from the store."""
    lines = [line for line in queued["sparser"].splitlines() if "taking the finished" in line]
    assert [line.partition(":")[0] for line in lines] == ["round 0", "round 1"]
    assert "round 2:" in queued["sparser"]


def test_another_denoiser_leaves_those_there_are(queued: dict[str, str]):
    """In the first round, and in later ones as long as the masks stay what they were."""
    trained = set(re.findall(r"look-ahead (\d/\d):", queued["more"]))
    assert trained == {"0/2", "1/0", "1/1", "1/2"}
    done = stages_run(queued["more"])
    assert {"weak_masks@0", "mask_soup@0", "retrain_isp"} <= done
    assert not stages("calibrate@0", "find_ticket", "retrain@", "dense", of=done)


def test_a_methods_file_reruns_its_own_row(queued: dict[str, str]):
    row = {"find_ticket@snip", "retrain@snip", "evaluate_method@snip"}
    assert stages_run(queued["edited"]) == {"plan", "tables"} | row


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("src/instant_soup/reports/figures.py", {"tables"}),
        ("src/instant_soup/pretraining/glyphs.py", set()),  # not needed for a model that is there
        # Images are decoded when they are encoded, by a file that reads tables, too.
        ("src/instant_soup/data/tables.py", {"prepare_data", "encode_data"}),
        (
            "src/instant_soup/training/loop.py",
            {
                *("dense_finetune", "retrain_isp", "evaluate@dense", "evaluate@isp"),
                *("calibrate@0", "calibrate@1", "weak_masks@0", "weak_masks@1"),
                *OF_ROWS,
            },
        ),
    ],
)
def test_a_source_reruns_what_runs_it(project: Path, source: str, expected: set[str]):
    with edited(project, source):
        assert what_would_run(project)[0] == expected


def test_comments_rerun_the_plan_alone(project: Path):
    sources = ("src/instant_soup/training/loop.py", "stages/evaluate.py")
    with edited(project, "params.yaml", *sources, line="# edited"):
        assert stages_run(run_command(project, "dvc", "repro")) == {"plan"}


def test_data_that_changed_under_the_same_settings_is_read_anew(
    tmp_path: Path, tiny_bert: Path, tiny_data: Path
):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    make_repository(tmp_path / "project", tiny_bert, data, rounds=1, methods=[])

    def prepared() -> bool:
        output = run_command(tmp_path / "project", "dvc", "repro", "prepare_data")
        return "prepare_data" in stages_run(output)

    assert prepared() and not prepared()
    make_table(200, seed=5).to_parquet(data / "train.parquet")
    assert prepared()


def test_seed_leaves_data_and_base_model(project: Path):
    listed = set(run_command(project, "dvc", "stage", "list", "--name-only").split())
    untouched = {"prepare_data", "pretrain_clip", "pretrain_lm", "prepare_model", "encode_data"}
    done = affected_by(project, seed=1)
    assert done & untouched == set()
    # Listed, but not needed: hangs on the round before, and passes by at once.
    not_needed = stages(*(f"{s}@{i}" for s in ISP for i in range(2, 4)), of=listed)
    assert listed - untouched - not_needed == done - not_needed


def test_look_ahead_touches_only_isp(project: Path):
    done = affected_by(project, isp={"look_ahead": 3})
    assert {"weak_masks@0", "weak_masks@1", "retrain_isp", "evaluate@isp"} <= done
    assert not stages(
        "prepare",
        "encode",
        "attach",
        "dense",
        "find_ticket",
        "retrain@",
        "evaluate@dense",
        "evaluate_method",
        "calibrate@0",
        of=done,
    )


def test_dataset_reruns_from_the_data_stage_on(project: Path, tiny_data: Path, tmp_path: Path):
    table = pd.read_parquet(tiny_data / "train.parquet")
    table.iloc[:150].to_csv(tmp_path / "train.csv", index=False)
    table.iloc[150:].to_csv(tmp_path / "test.csv", index=False)
    done = affected_by(project, dataset=f"local:{tmp_path}")
    assert {"prepare_data", "encode_data", "dense_finetune", "calibrate@0", "tables"} <= done
    assert not stages("pretrain", "prepare_model", of=done)


def test_experiments_keep_their_own_results(queued: dict[str, str], project: Path):
    assert result_of(project, "sparser", "isp")["target_sparsity"] == 0.8
    assert result_of(project, "more", "isp")["cost"]["search_steps"] == 12
    run_command(project, sys.executable, "stages/tables.py")
    ledger = pd.read_csv(project / "reports/results.csv")
    found = ledger[ledger["method"] == "isp"]["target_sparsity"].value_counts()
    assert found.to_dict() == {0.6: 2, 0.8: 1}  # of the first run and of "more"; of "sparser"
    run_command(project, "git", "checkout", "-q", "reports")


def test_everything_is_in_the_main_database(queued: dict[str, str], project: Path):
    database = sqlite3.connect(project / "mlflow.db")
    runs = dict(database.execute("select run_uuid, name from runs order by start_time").fetchall())
    keys = database.execute("select run_uuid, value from tags where key = 'instant_soup.pipeline'")
    runs |= dict(keys.fetchall())  # a parent by its key: many have one name
    parents = dict(
        database.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'")
    )
    children: dict[str, set[str]] = {}  # in the order in which the first of each began
    for child in filter(parents.get, runs):
        children.setdefault(runs[parents[child]], set()).add(runs[child])
    assert set(EXPERIMENTS) <= set(children)
    assert {"retrain isp", "soup 2", "weak mask 2/1", "evaluate isp"} <= children["sparser"]
    plain = next(name for name in children if name.startswith("repro-"))
    assert {"dense", "calibrate 0", "weak mask 1/0", "soup 1", "tables"} <= children[plain]
    points = database.execute("select count(*) from metrics where key = 'train_loss'").fetchone()
    assert points[0] > 20
    assert not list((project / ".dvc/tmp/instant-soup/mlflow").glob("*/record.json"))


def test_temporary_copy_reuses_the_cache_and_records_in_the_main_repository(project: Path):
    output = run_command(
        project, "dvc", "exp", "run", "--temp", "-n", "copied", "-S", "isp.own_mask=true"
    )
    done = stages_run(output)
    assert "mask_soup@0" in done
    assert not stages("weak_masks@0", "dense", "find_ticket", "calibrate@0", of=done)
    database = sqlite3.connect(project / "mlflow.db")
    named = "select count(*) from runs where name like '% · copied'"
    assert database.execute(named).fetchone() == (1,)


def test_own_mask_makes_the_union_plain_progressive_pruning(project: Path):
    """The law of soup.adjust, seen end to end; needs the experiment of the test before."""
    rounds = result_of(project, "copied", "isp")["rounds"]
    assert all(r["overlap_own_mask"] == pytest.approx(1.0, abs=1e-12) for r in rounds)
    assert result_of(project, "copied", "isp")["variant"].endswith("isp.own_mask=true")


def test_metrics_and_plots_say_something_offline(project: Path, tmp_path: Path):
    shown = json.loads(run_command(project, "dvc", "metrics", "show", "--json"))
    data = shown[""]["data"]["reports/metrics.json"]["data"]
    assert set(data) == {"dense", "isp", *METHODS}
    assert 0 < data["isp"]["accuracy"] <= 1
    run_command(project, "dvc", "plots", "show", "-o", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert page.count("vega-lite/v5.json") >= 3 and "isp" in page
    assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"http", page)
    header = run_command(project, "dvc", "exp", "show", "--csv").partition("\n")[0].split(",")
    assert {"isp.accuracy", "dense.seconds", "sparsity", "isp.look_ahead"} <= set(header)


def test_bad_parameter_stops_in_one_line_before_any_work(project: Path):
    output = run_command(project, "dvc", "exp", "run", "--temp", "-S", "sparsity=1.5", ok=False)
    assert stages_run(output) == {"plan"}
    lines = [line for line in output.splitlines() if "error: params.yaml" in line]
    assert len(lines) == 1 and "sparsity" in lines[0] and "less than 1" in lines[0]
    assert "Traceback" not in output


def test_interrupted_run_of_ten_rounds_simply_continues(
    tmp_path: Path, tiny_bert: Path, tiny_data: Path
):
    """Ten rounds of the paper's rate, up to 95 %: as many as dvc.yaml has."""
    changes: dict = {"methods": [], "sparsity": 0.95}
    changes["training"] = {**PIPELINE_PARAMS["training"], "epochs": 40}
    changes["isp"] = {"compression_rate": 0.1, "calibration": 0.05, "look_ahead": 1, "denoisers": 1}
    project = make_repository(tmp_path / "soup", tiny_bert, tiny_data, rounds=10, **changes)
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=project, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A shell's background job ignores Ctrl-C, and so would everything that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "Running stage 'dense_finetune'" in line:
            break
    time.sleep(2)  # into the stage, which takes longer than that
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() != 0, rest
    assert not (project / "models/retrained/dense").exists()
    output = run_command(project, "dvc", "repro")
    assert {"dense_finetune", "tables"} <= stages_run(output)
    assert not stages_run(output) & {"prepare_data", "prepare_model", "encode_data"}
    assert re.search(r"dense fine-tuning: continuing from the checkpoint at step [1-9]", output)
    assert not list(project.glob("models/**/*unfinished*"))
    result = json.loads((project / "reports/results/isp.json").read_text())
    reached = [pytest.approx(s, abs=1e-4) for s in (*(0.1 * i for i in range(1, 10)), 0.95)]
    assert [r["sparsity"] for r in result["rounds"]] == reached
    assert [r["steps"] for r in result["rounds"]] == list(range(1, 11))
    assert (result["cost"]["steps"], result["cost"]["search_steps"]) == (800, 10)
