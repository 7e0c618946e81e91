"""Grids: what cells a file has, and that running them shares, reports, stops and goes on.

The grid of the second half is small but real: DVC in copies of a project, with a tiny model.
"""

import fcntl
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from helpers import ROOT, environment, make_repository, result, run_command, stages_run
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json
from instant_soup.grids import ray, runner
from instant_soup.grids.cells import Cell, identity, known_results, lanes_of, read_cells
from instant_soup.grids.command import from_elsewhere, other_processors
from instant_soup.pipeline import processes
from instant_soup.pipeline.plan import plan
from instant_soup.reports.ledger import KEY, merge_ledger
from instant_soup.reports.paper import read_paper
from instant_soup.training.cost import processor

SHARED = ROOT.parent / "shared/data"
ALL_METHODS = {
    *("dense", "isp", "random", "one_shot", "progressive", "early_bird", "snip", "grasp"),
    *("lth", "lth_rewind", "lottery_pool", "isp_plus"),
}
TASK = {"model": "minilm", "dataset": "reviews-sentiment", "sparsities": [0.7]}
GRID = {"preset": "quick", "methods": ["one_shot"], "tasks": [TASK], "seeds": [0]}


@pytest.fixture
def params() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def write_grid(folder: Path, name: str = "mine", **changes: Any) -> Path:
    """A grid file: GRID with changes."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    return path


def cells_of(tmp_path: Path, params: dict[str, Any], **changes: Any) -> list[Cell]:
    return read_cells(write_grid(tmp_path, **changes), params)


# The files of the repository


def test_quick_grid_has_all_methods_on_both_families(params):
    cells = read_cells(ROOT / "grids/quick.yaml", params)
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 3 * 3
    assert all(set(cell.methods) == ALL_METHODS for cell in cells)
    assert {cell.changes["model"] for cell in cells} == {"minilm", "clip-glyph"}


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_grids_of_the_paper_have_its_columns_rows_and_three_seeds(name: str, params):
    cells = read_cells(ROOT / f"grids/{name}.yaml", params)
    table = read_paper()[name]
    columns = {(c["dataset"], s) for c in table["columns"] for s in c["sparsities"]}
    found = Counter((cell.changes["dataset"], cell.changes["sparsity"]) for cell in cells)
    assert found == dict.fromkeys(columns, 3)
    assert {cell.changes["model"] for cell in cells} == {table["model"]}
    assert {cell.changes["preset"] for cell in cells} == {"paper"}
    assert all(set(cell.methods) == ALL_METHODS for cell in cells)


@pytest.mark.parametrize("path", sorted((ROOT / "grids").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_grid_can_be_run(path: Path, params, tmp_path: Path):
    text = path.read_text()
    if "data.path: ../" in text:  # copies that lie beside the checkout
        if not SHARED.exists():
            pytest.skip("no shared data")
        text = text.replace("data.path: ../", f"data.path: {SHARED}/")
    own = tmp_path / path.name
    own.write_text(text)
    cells = read_cells(own, params)
    assert len({cell.name for cell in cells}) == len({cell.results for cell in cells}) == len(cells)


# Cells


def test_names_tell_the_cell_and_its_lane(tmp_path: Path, params):
    task = {**TASK, "sparsities": [0.7, 2 / 3]}
    cells = cells_of(tmp_path, params, tasks=[task], seeds=[3])
    assert [cell.name for cell in cells] == [
        "mine-minilm-reviews-sentiment-s70-seed3",
        "mine-minilm-reviews-sentiment-s66.6667-seed3",
    ]
    assert {cell.lane for cell in cells} == {"mine-minilm-reviews-sentiment-seed3"}


def test_names_are_taken_by_git(tmp_path: Path, params, tiny_bert: Path):
    folder = shutil.copytree(tiny_bert, tmp_path / "my..bert~1 @{2}")
    (cell,) = cells_of(tmp_path, params, tasks=[{**TASK, "model": f"local:{folder}"}])
    assert re.fullmatch(r"mine-[\w-]*bert[\w-]*-reviews-sentiment-s70-seed0", cell.name)
    subprocess.run(["git", "check-ref-format", f"refs/exps/{cell.name}"], check=True)


def test_settings_change_names_lanes_and_identities(tmp_path: Path, params):
    own = {**TASK, "settings": {"training.epochs": 0.4}}
    plain, changed = cells_of(tmp_path, params, tasks=[TASK, own])
    assert re.fullmatch(rf"{plain.name}-[0-9a-f]{{6}}", changed.name)
    assert plain.lane != changed.lane
    assert not plain.results & changed.results
    (everywhere,) = cells_of(tmp_path, params, settings={"training.epochs": 0.4})
    assert (everywhere.name, everywhere.results) == (changed.name, changed.results)


def test_own_params_count_as_settings(tmp_path: Path, params):
    (plain,) = cells_of(tmp_path, params)
    params["training"]["epochs"] = 0.4
    (changed,) = cells_of(tmp_path, params)
    assert plain.name != changed.name and not plain.results & changed.results


def test_a_tasks_settings_win(tmp_path: Path, params):
    task = {**TASK, "settings": {"training.epochs": 0.4}}
    (cell,) = cells_of(tmp_path, params, tasks=[task], settings={"training.epochs": 0.5})
    assert cell.changes["training.epochs"] == 0.4


def test_methods_go_into_their_list(tmp_path: Path, params):
    methods = ["lth", "random_init", "snip", "lottery_pool", "random"]
    (cell,) = cells_of(tmp_path, params, methods=methods)
    assert cell.changes["exports"] == []
    assert cell.changes["methods"] == methods
    assert set(cell.methods) == {"dense", "isp", *methods}
    (pool,) = cells_of(tmp_path, params, methods=["lottery_pool"])  # it trains its own rounds
    assert pool.methods == ["dense", "isp", "lottery_pool"]
    (bare,) = cells_of(tmp_path, params, methods=[])
    assert bare.methods == ["dense", "isp"]


def test_a_task_may_have_methods_of_its_own(tmp_path: Path, params):
    tasks = [TASK, {**TASK, "methods": ["gmp"], "settings": {"gmp.cycles": 2}}]
    plain, own = cells_of(tmp_path, params, tasks=tasks)
    assert plain.methods == ["dense", "isp", "one_shot"] and own.methods == ["dense", "isp", "gmp"]
    # What gmp is told changes no other row: of this cell only gmp is new.
    assert own.without(plain.results).to_run == ("gmp",)
    with pytest.raises(UserError, match=r"tasks\[0\].methods: 'no' is not allowed"):
        cells_of(tmp_path, params, tasks=[{**TASK, "methods": ["no"]}])


def test_lanes_go_from_low_to_high_sparsity_and_seed_by_seed(tmp_path: Path, params):
    tasks = [{**TASK, "sparsities": [0.9, 0.5]}, {**TASK, "dataset": "reviews-rating"}]
    cells = cells_of(tmp_path, params, tasks=tasks, seeds=[1, 0])
    order = [
        [(c.changes["dataset"], c.changes["seed"], c.changes["sparsity"]) for c in lane]
        for lane in lanes_of(cells)
    ]
    assert order == [
        [("reviews-sentiment", 1, 0.5), ("reviews-sentiment", 1, 0.9)],
        [("reviews-rating", 1, 0.7)],
        [("reviews-sentiment", 0, 0.5), ("reviews-sentiment", 0, 0.9)],
        [("reviews-rating", 0, 0.7)],
    ]


def test_a_task_in_two_pieces_is_one_lane(tmp_path: Path, params):
    pieces = [TASK, {**TASK, "dataset": "reviews-rating"}, {**TASK, "sparsities": [0.5]}]
    lanes = lanes_of(cells_of(tmp_path, params, tasks=pieces))
    assert [len(lane) for lane in lanes] == [2, 1]


def test_lanes_that_start_together_have_dense_runs_of_their_own(tmp_path: Path, params):
    pieces = [TASK, *({**TASK, "settings": {"isp.denoisers": n}} for n in (1, 6))]
    cells = cells_of(tmp_path, params, tasks=pieces, seeds=[0, 1])
    order = [(lane[0].changes.get("isp.denoisers"), lane[0].dense) for lane in lanes_of(cells)]
    assert [denoisers for denoisers, _ in order] == [None, None, 1, 1, 6, 6]
    assert len({dense for _, dense in order}) == 2
    assert all(a != b for (_, a), (_, b) in pairwise(order))
    (longer,) = cells_of(tmp_path, params, settings={"training.epochs": 0.4})
    assert longer.dense not in {dense for _, dense in order}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": "quick"}, "unknown key presets; did you mean preset?"),
        ({"seeds": None}, "seeds is missing; needed: preset, methods, tasks, seeds"),
        ({"seeds": []}, "seeds: [] is not allowed; allowed: a list of at least one"),
        ({"seeds": 3}, "seeds: 3 is not allowed"),
        ({"seeds": [0, 0]}, "mine-minilm-reviews-sentiment-s70-seed0 is there twice"),
        ({"seeds": [-1]}, "seed -1: seed: -1 is not allowed; allowed: a whole number from 0"),
        ({"preset": "fast"}, "preset: 'fast' is not allowed; allowed: quick | paper"),
        ({"methods": ["dense"]}, "(dense and isp are always there)"),
        ({"methods": ["one_shot", "one_shot"]}, "each at most once"),
        ({"methods": ["snap"]}, "methods: 'snap' is not allowed; allowed: random | "),
        ({"methods": "snip"}, "methods: 'snip' is not allowed"),
        ({"tasks": [{**TASK, "sparsity": 0.5}]}, "tasks[0]: unknown key sparsity; did you mean"),
        ({"tasks": ["minilm"]}, "tasks[0]: must be a mapping with the keys model, dataset, spa"),
        ({"tasks": [TASK, {"model": "minilm"}]}, "tasks[1]: dataset is missing"),
        ({"tasks": [{**TASK, "sparsities": 0.5}]}, "tasks[0].sparsities: 0.5 is not allowed"),
        ({"tasks": [{**TASK, "sparsities": [70]}]}, "sparsity 70, seed 0: sparsity: 70 is not al"),
        ({"tasks": [{**TASK, "sparsities": ["a"]}]}, "sparsity: 'a' is not allowed"),
        ({"tasks": [{**TASK, "model": "mini"}]}, "model: unknown 'mini'; did you mean minilm?"),
        ({"tasks": [{**TASK, "dataset": "mnist"}]}, "dataset: mnist holds images"),
        ({"settings": {"training.epoch": 1}}, "unknown key training.epoch; did you mean"),
        ({"settings": {"training.epochs": -1}}, "training.epochs: -1 is not allowed"),
        ({"settings": {"training": {"epochs": 1}}}, "'training' is not allowed; allowed: section"),
        ({"settings": {"sparsity": 0.5}}, "settings: sparsity is the grid's own"),
        ({"settings": {"methods": []}}, "settings: methods is the grid's own"),
        ({"settings": [1]}, "settings: must be a mapping, as {training.epochs: 0.3}"),
        ({"settings": {"isp.calibration": 0.3}}, "isp.calibration: 4 rounds of mask finding"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, params, changes, message: str):
    with pytest.raises(UserError) as error:
        cells_of(tmp_path, params, **changes)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / 'mine.yaml'}: ") and message in text and "\n" not in text


def test_errors_of_params_are_not_blamed_on_the_grid(tmp_path: Path, params):
    params["training"]["epochs"] = -1
    with pytest.raises(UserError, match=r"^params\.yaml: training\.epochs"):
        cells_of(tmp_path, params)


def test_not_a_grid(tmp_path: Path, params):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(UserError, match="must be a mapping with the keys preset, methods"):
        read_cells(path, params)


# What is done


def results_for(cell: Cell) -> list[dict[str, Any]]:
    """Invented results with the identities of a cell."""
    rest = {"metric": "accuracy", "test": {"accuracy": 0.5}, "cost": {"steps": 1}}
    return [{**dict(zip(KEY, identity, strict=True)), **rest} for identity in cell.results]


def test_a_cell_is_done_when_the_ledger_has_all_of_its_rows(tmp_path: Path, params):
    (cell,) = cells_of(tmp_path, params)
    (more,) = cells_of(tmp_path, params, methods=["one_shot", "random"])
    (other,) = cells_of(tmp_path, params, settings={"training.epochs": 0.4})
    assert not known_results(tmp_path)
    *most, last = sorted(results_for(cell), key=lambda result: result["target_sparsity"])
    merge_ledger(tmp_path / "reports/results.csv", most, "1234")
    assert cell.without(known_results(tmp_path)).to_run == (last["method"],)
    merge_ledger(tmp_path / "reports/results.csv", [last], "1234")
    known = known_results(tmp_path)
    assert not cell.without(known).to_run
    assert more.without(known).to_run == ("random",)
    assert more.without(known).targets == ["evaluate_method@random"]
    assert other.without(known).to_run == tuple(other.methods) and not other.targets
    last |= {"base": "89abcdef", "processor": "Babbage (cogs)"}
    merge_ledger(tmp_path / "reports/results.csv", [last], "1234")
    assert known_results(tmp_path)[identity(last)] == {"", "Babbage (cogs)"}


def test_a_cell_beside_rows_of_another_processor_is_warned_of(tmp_path: Path, params):
    (cell,) = cells_of(tmp_path, params)
    row = cell.rows["isp"]
    told = other_processors([cell], {row: {"Babbage (cogs)"}})
    assert "another processor (Babbage (cogs))" in told and "--here" in told
    assert not other_processors([cell], {row: {"Babbage (cogs)", processor()}})


def test_rows_that_the_cache_had_of_another_processor_are_not_said_done(tmp_path: Path, params):
    (cell,) = cells_of(tmp_path, params)
    row = cell.rows["isp"]
    others = {key: {processor()} for key in set(cell.rows.values()) - {row}}
    ((failed, why),) = from_elsewhere([cell], others)
    assert failed == cell and why.startswith("isp: DVC's cache had another processor's run")
    assert not from_elsewhere([cell], {**others, row: {processor()}})


def test_a_cell_of_some_rows_is_an_experiment_of_its_own(tmp_path: Path, params):
    """Else it would take the place of the one that has the others."""
    (cell,) = cells_of(tmp_path, params, methods=["one_shot", "random", "snip"])
    some = [cell.without({cell.rows[left]}) for left in ("one_shot", "random")]
    assert len({cell.name, *(own.name for own in some)}) == 3
    assert all(own.name.startswith(f"{cell.name}-rows-") for own in some)
    assert cell.without([]).name == cell.name


# Parts of the runner


def bare_runner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Runner:
    """A runner of one slot, without a repository: DVC, copies and experiments are the test's."""
    own = object.__new__(runner.Runner)
    own.root, own.head, own.processes = folder, "0" * 40, processes.Processes()
    own.copies, own.logs = folder / "copies", folder / "logs"
    own.params = (ROOT / "params.yaml").read_text()
    own.events, own.slots, own.cards = queue.Queue(), queue.Queue(), {}
    own.slots.put("")
    own.collecting = threading.Lock()
    monkeypatch.setattr(own, "make_copy", lambda copy: copy.mkdir(parents=True))
    monkeypatch.setattr(own, "prepare", lambda cell, make: None)
    return own


def test_a_row_that_fails_holds_up_no_other(tmp_path: Path, params, monkeypatch):
    (cell,) = cells_of(tmp_path, params, methods=["snip", "one_shot"])
    own, saved = bare_runner(tmp_path, monkeypatch), []

    def dvc(copy: Path, cell: Cell, log: Any, command: str, entry: str) -> None:
        if entry.endswith("@snip"):
            raise UserError("it is broken")

    monkeypatch.setattr(own, "make_copy", lambda copy: write_rows(copy, cell))
    monkeypatch.setattr(own, "dvc", dvc)
    monkeypatch.setattr(own, "save_experiment", lambda copy, cell: saved.append(shown(copy)))
    own.run_lane([cell])
    assert [own.events.get()[1:] for _ in range(2)] == [
        ("running", ""),
        ("failed", "snip: it is broken"),
    ]
    assert cell.without(known_results(tmp_path)).to_run == ("snip",)
    # DVC shows of the experiment what is done, not the commit's run.
    assert saved == [{"dense", "isp", "one_shot"}]


def write_rows(copy: Path, cell: Cell) -> None:
    """The reports in a copy: results of all rows of a cell, and numbers of the commit's run."""
    for number, one in enumerate(results_for(cell)):
        curve = copy / f"reports/curves/{one['method']}.csv"
        curve.parent.mkdir(parents=True, exist_ok=True)
        curve.write_text(f"step,validation\n{number},0.5\n")
        whole = {**one, **result(one["method"], rounds=[{"round": 0}])}
        whole |= {key: one[key] for key in KEY}
        write_json(copy / f"reports/results/{one['method']}.json", whole)
    write_json(copy / "reports/metrics.json", {"committed": {"accuracy": 0.9}})


def shown(copy: Path) -> set[str]:
    """The rows of which DVC shows numbers."""
    found = set(read_json(copy / "reports/metrics.json"))
    assert found == set(pd.read_csv(copy / "reports/curves.csv")["method"])
    return found


def test_an_experiment_of_some_rows_shows_those_alone(tmp_path: Path, params, monkeypatch):
    """Here and on a node of Ray."""
    cell = cells_of(tmp_path, params)[0]
    cell = cell.without({cell.rows["dense"], cell.rows["isp"]})
    own, saved = bare_runner(tmp_path, monkeypatch), []
    monkeypatch.setattr(own, "make_copy", lambda copy: write_rows(copy, cell))
    monkeypatch.setattr(own, "dvc", lambda *arguments: None)
    monkeypatch.setattr(own, "save_experiment", lambda copy, cell: saved.append(shown(copy)))
    own.run_lane([cell])

    def experiment(state: ray.State, clone: Path, cell: Cell) -> dict[str, str]:
        saved.append(shown(clone))
        return {}

    monkeypatch.setattr(ray, "_clone", lambda state, folder, clone: write_rows(clone, cell))
    monkeypatch.setattr(ray, "_run", lambda *arguments: None)
    monkeypatch.setattr(ray, "_experiment", experiment)
    state = ray.State(b"", "", own.head, "", own.params, "", "", 0)
    assert not ray.run_cell(state, cell, "")["error"]
    assert saved == [{"one_shot"}, {"one_shot"}]


def test_a_lane_that_cannot_even_log_gives_its_slot_back(tmp_path: Path, params, monkeypatch):
    (cell,) = cells_of(tmp_path, params)
    own = bare_runner(tmp_path, monkeypatch)
    (tmp_path / "logs").write_text("no folder")
    own.run_lane([cell])
    assert own.slots.qsize() == 1
    assert [own.events.get()[1] for _ in range(2)] == ["running", "failed"]


def test_written_params_keep_comments_and_make_the_cell(tmp_path: Path, params):
    settings = {"imp.coefficients": [0.5], "training.learning_rate": "1e-4"}
    (cell,) = cells_of(tmp_path, params, settings=settings, methods=["lth"], preset="paper")
    path = tmp_path / "params.yaml"
    runner.write_params(path, (ROOT / "params.yaml").read_text(), cell)
    text = path.read_text()
    assert "# The only file to edit." in text and "# the budget T" in text
    files = plan(yaml.safe_load(text))
    assert {identity(files[f"evaluate_{m}"]) for m in cell.methods} == cell.results


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            "Running\nerror: no such file\nERROR: failed to reproduce 'plan'\n",
            "error: no such file",
        ),
        ("Traceback\n  x\nKeyError: 'a'\nERROR: failed to reproduce 'plan'\n", "KeyError: 'a'"),
        ("torch.OutOfMemoryError: CUDA\nERROR: failed\n", "torch.OutOfMemoryError: CUDA"),
        ("Running\nERROR: failed to run: x, exited with -9\n\n", "ERROR: failed to run: x, ex"),
        ("something else\n\n", "something else"),
        ("", "no output"),
    ],
)
def test_the_last_error_is_the_stages_own(tmp_path: Path, log: str, expected: str):
    (tmp_path / "log").write_text(log)
    assert processes.last_error(tmp_path / "log").startswith(expected)


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.4, "41 s"), (125, "2 min"), (5000, "83 min"), (12_600, "3.5 h")]
)
def test_durations_as_people_say_them(seconds: float, text: str):
    assert processes.duration(seconds) == text


def test_cells_inherit_no_outer_dvc_and_share_the_cores(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("DVC_EXP_NAME", "outer")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    found = processes.environment(tmp_path, jobs=4)
    assert "DVC_EXP_NAME" not in found and found["OMP_NUM_THREADS"] == "1"
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert processes.environment(tmp_path, jobs=2)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in processes.environment(tmp_path, jobs=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert processes.environment(tmp_path, jobs=2)["OMP_NUM_THREADS"] == "5"


def started(script: str, **options: Any) -> subprocess.Popen:
    """A shell in a process group of its own, once it has said that it is ready."""
    process = subprocess.Popen(
        ["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True, **options
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_a_group_that_ignores_the_interrupt_is_killed_with_its_children(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    process = started("trap '' INT; sleep 60 & echo ready; while true; do wait; done")
    processes.end_groups([process.pid], lambda: process.poll() is not None)
    assert process.wait(timeout=5) == -signal.SIGKILL
    assert process.stdout is not None and process.stdout.read() == b""  # the child has let go of it


def test_a_group_that_ends_in_good_order_is_not_waited_for():
    process = started("trap 'echo kept; exit 3' INT; echo ready; while true; do sleep 0.1; done")
    start = time.monotonic()
    processes.end_groups([process.pid], lambda: process.poll() is not None)
    assert time.monotonic() - start < processes.PATIENCE / 2
    assert process.wait() == 3
    assert process.stdout is not None and process.stdout.read() == b"kept\n"


def test_only_one_grid_runs_in_a_repository(tmp_path: Path):
    with (
        runner.only_grid(tmp_path),
        pytest.raises(UserError, match="another grid is running"),
        runner.only_grid(tmp_path),
    ):
        pass
    with runner.only_grid(tmp_path):
        pass


def test_what_a_killed_grid_left_is_ended_and_removed(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)  # a shell's background job ignores Ctrl-C
    copies = tmp_path / ".dvc/tmp/grid/copies"
    (copies / "lane").mkdir(parents=True)
    with open(copies / "lane.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = started("sleep 60 & echo ready; wait", pass_fds=[lock.fileno()])
        lock.write(str(process.pid))
    with runner.only_grid(tmp_path):
        assert process.wait(timeout=5) != 0
        assert list(copies.iterdir()) == []
    assert "lane: a killed call left it running" in capsys.readouterr().out


# A grid, run


def call(project: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the runner in a project."""
    done = subprocess.run(
        [sys.executable, "-m", "instant_soup.grids.command", *arguments],
        cwd=project, env={**environment(), "PYTHONPATH": "src"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_bert: Path, tiny_data: Path) -> Path:
    """A project as a user has it: results of before are committed; a file was just changed, and a
    refused experiment has left its value in params.yaml.

    Grids: mine (two sparsities, two seeds) with a task whose model cannot be loaded, and late.
    """
    base = tmp_path_factory.mktemp("grid")
    project = make_repository(base / "soup", tiny_bert, tiny_data, rounds=2, methods=[])
    shutil.copytree(ROOT / "reports", project / "reports", dirs_exist_ok=True)
    ledger = project / "reports/results.csv"  # a few of its rows: each cell makes all tables anew
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:9]))
    broken = shutil.copytree(tiny_bert, base / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    task = {"model": f"local:{tiny_bert}", "dataset": f"local:{tiny_data}"}
    good = {**task, "sparsities": [0.6, 0.3]}
    bad = {**task, "model": f"local:{broken}", "sparsities": [0.3]}
    settings = {"isp.denoisers": 1}
    (project / "grids").mkdir(exist_ok=True)
    write_grid(project / "grids", tasks=[good, bad], seeds=[0, 1], settings=settings)
    late = {**task, "sparsities": [0.45]}
    write_grid(project / "grids", "late", tasks=[late], methods=[], settings=settings)
    pair = [{**late, "settings": {"isp.adjust": each}} for each in ("every_round", "last_round")]
    write_grid(project / "grids", "settings", tasks=pair, methods=[], seeds=[2], settings=settings)
    params, page = project / "params.yaml", project / "README.md"
    params.write_text(params.read_text().replace("look_ahead: 2", "look_ahead: 1"))
    run_command(project, "git", "add", "-A")
    run_command(project, "git", "commit", "-qm", "grids")
    params.write_text(params.read_text().replace("look_ahead: 1", "look_ahead: -1"))
    page.write_text(f"edited\n{page.read_text()}")
    return project


@pytest.fixture(scope="module")
def first(project: Path) -> tuple[int, str]:
    """The first call: exit code and output."""
    return call(project, "grids/mine.yaml", "--jobs", "2")


def logs(project: Path, part: str) -> dict[str, str]:
    """The logs of the cells with `part` in their names, by name."""
    folder = project / ".dvc/tmp/grid/logs"
    return {path.stem: path.read_text() for path in sorted(folder.glob(f"*{part}*.log"))}


def experiments(project: Path) -> list[str]:
    """The names of the project's experiments."""
    refs = run_command(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    return [ref.rpartition("/")[2] for ref in refs]


def is_running(project: Path) -> bool:
    """Whether a process works in one of the project's copies."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(project) in os.readlink(link):
                return True
        except OSError:
            continue  # it has ended, or is not ours
    return False


def test_every_good_cell_is_an_experiment(project: Path, first: tuple[int, str]):
    found = sorted(re.sub("-[0-9a-f]{6}$", "", name) for name in experiments(project))
    name = f"mine-{logs_name(project)}"
    assert found == [f"{name}-s{s}-seed{seed}" for s in (30, 60) for seed in (0, 1)], first[1]
    assert first[1].count(": done ") == 4
    assert not is_running(project)
    assert list((project / ".dvc/tmp/grid/copies").iterdir()) == []


def logs_name(project: Path) -> str:
    """Model and dataset as the names of cells have them."""
    grid_file = yaml.safe_load((project / "grids/mine.yaml").read_text())
    task = grid_file["tasks"][0]
    names = [f"local-{Path(task[key]).name}" for key in ("model", "dataset")]
    return "-".join(names).replace("_", "-")


def test_what_cells_share_is_made_once(project: Path, first: tuple[int, str]):
    times = Counter(stage for log in logs(project, "-s").values() for stage in stages_in(log))
    assert [times[s] for s in ("prepare_data", "encode_data", "dense_finetune")] == [1, 1, 2]
    # Rounds that a cell does not need pass by without training.
    said = "".join(logs(project, "-s").values())
    begun = Counter(re.findall(r"(calibrate round \d|look-ahead \d/\d): +0%", said))
    rounds = ("calibrate round 0", "calibrate round 1", "look-ahead 0/0", "look-ahead 1/0")
    assert begun == dict.fromkeys(rounds, 2)
    assert times["retrain_isp"] == times["retrain@one_shot"] == 4


def stages_in(log: str) -> list[str]:
    """The stages that DVC ran, each as often as it did."""
    return re.findall(r"Running stage '([^']+)'", log)


def test_failed_cells_are_reported_with_their_error_and_log(project, first: tuple[int, str]):
    code, output = first
    assert code == 1
    lines = [line for line in output.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 2 and all("mine-local-broken-" in line for line in lines)
    for line in lines:
        error, log = re.fullmatch(r"failed: \S+: (.*) \(log: (.*)\)", line).groups()
        assert "hidden_size" in error or "size" in error
        text = Path(log).read_text()
        assert "prepare_model" in stages_run(text) and error in text
    assert output.count(": failed ") == 2 and "all cells done" not in output


def test_workspace_is_as_it_was_but_for_reports(project: Path, first: tuple[int, str]):
    changed = run_command(project, "git", "status", "--porcelain").splitlines()
    assert {line[3:].split("/")[0] for line in changed} == {"params.yaml", "README.md", "reports"}
    diff = run_command(project, "git", "diff", "--numstat", "params.yaml")
    assert diff.split() == ["1", "1", "params.yaml"]
    branch = run_command(project, "git", "symbolic-ref", "--short", "HEAD").strip()
    assert branch in ("master", "main")
    assert run_command(project, "git", "stash", "list") == ""


def test_changed_files_count_and_uncommitted_values_do_not(project: Path, first: tuple[int, str]):
    name = next(name for name in experiments(project) if "-s60-seed1" in name)
    refs = run_command(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    (ref,) = (ref for ref in refs if ref.endswith(f"/{name}"))
    assert run_command(project, "git", "show", f"{ref}:README.md").startswith("edited\n")
    (said,) = [line for line in first[1].splitlines() if line.startswith("params.yaml: ")]
    assert "these do not count: isp.look_ahead -1 (committed: 1) (" in said
    ledger = pd.read_csv(project / "reports/results.csv")
    mine = ledger[ledger["dataset"].str.startswith("local:tiny-data")]
    isp = mine[mine["method"] == "isp"]
    assert sorted(zip(isp["target_sparsity"], isp["seed"], strict=True)) == [
        (0.3, 0), (0.3, 1), (0.6, 0), (0.6, 1),
    ]  # fmt: skip
    assert isp["variant"].str.contains("isp.look_ahead=1 isp.denoisers=1", regex=False).all()
    assert len(mine) == 2 + 2 * 4  # dense for each seed
    head = run_command(project, "git", "rev-parse", "HEAD")
    assert all(head.startswith(version) for version in isp["code_version"])
    assert "tiny-data" in (project / "reports/tables/results.md").read_text()


def test_an_experiment_can_be_applied_with_nothing_left_to_run(project, first, tmp_path: Path):
    run_command(tmp_path, "git", "clone", "-q", str(project), "clone")
    clone = tmp_path / "clone"
    name = next(name for name in experiments(project) if "-s60-seed1" in name)
    run_command(clone, "git", "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    run_command(clone, "dvc", "cache", "dir", "--local", str(project / ".dvc/cache"))
    run_command(clone, "dvc", "exp", "apply", name)
    assert yaml.safe_load((clone / "params.yaml").read_text())["sparsity"] == 0.6
    assert stages_run(run_command(clone, "dvc", "repro")) == {"plan"}


def test_second_call_finds_all_done(project: Path, first: tuple[int, str]):
    code, output = call(project, "grids/mine.yaml", "--dry-run")
    states = Counter(line.split()[0] for line in output.splitlines() if "mine-" in line)
    assert code == 0 and states == {"done": 4, "to": 2}
    code, output = call(project, "grids/mine.yaml", "--only", "tiny-bert")
    assert code == 0 and "4 cells, 0 to do" in output and "started" not in output


def test_only_must_choose_something(project: Path):
    code, output = call(project, "grids/mine.yaml", "--only", "s55")
    assert code == 1 and "\nerror: --only: no cell has 's55' in its name, as " in output


def start_and_wait_for(project: Path, stages: re.Pattern) -> tuple[subprocess.Popen, str]:
    """Start the grid `late`; the process once one of the stages runs, and what it said first."""
    for log in (project / ".dvc/tmp/grid/logs").glob("late-*.log"):
        log.unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "instant_soup.grids.command", "grids/late.yaml"],
        cwd=project, env={**environment(), "PYTHONPATH": "src"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    while " started late-" not in said:
        assert process.poll() is None, said
        said += process.stdout.readline()
    while not any(map(stages.fullmatch, stages_in("".join(logs(project, "late").values())))):
        assert process.poll() is None, logs(project, "late")
        time.sleep(0.1)
    return process, said


def test_killed_and_interrupted_grids_go_on(project: Path, first: tuple[int, str]):
    killed, _ = start_and_wait_for(project, re.compile("weak_masks@1"))
    killed.kill()
    killed.communicate()
    assert is_running(project)  # DVC itself was not killed
    assert not any(name.startswith("late-") for name in experiments(project))
    # What the other has made meanwhile comes from the cache; results never do.
    interrupted, said = start_and_wait_for(project, re.compile("(?!plan).*"))
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=90)
    assert interrupted.returncode == 130
    assert "a killed call left it running" in said
    assert "interrupted: the same command goes on from here" in output
    assert not is_running(project)
    assert not any(name.startswith("late-") for name in experiments(project))
    code, output = call(project, "grids/late.yaml")
    assert code == 0, output
    (log,) = logs(project, "late").values()
    done = stages_run(log)
    assert "evaluate@isp" in done  # the dense row is known, so this is not a whole cell: no tables
    assert "evaluate@dense" not in done
    assert not done & {"prepare_data", "dense_finetune", "calibrate@1"}
    assert any(name.startswith("late-") for name in experiments(project))


def test_other_settings_of_isp_share_the_dense_run(project: Path, first: tuple[int, str]):
    assert call(project, "grids/settings.yaml", "--jobs", "2")[0] == 0
    times = Counter(
        stage for log in logs(project, "settings-").values() for stage in stages_in(log)
    )
    assert times["dense_finetune"] == 1 and times["retrain_isp"] == 2
