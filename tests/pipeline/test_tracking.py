"""Records written by stages, and their mirror in a real MLflow database."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from instant_soup.pipeline import tracking
from instant_soup.pipeline.tracking import flush, spool_folder, stage_run

SOURCE = Path(tracking.__file__).parents[1]
PARAMS = (
    "model: tiny\ndataset: reviews\nsparsity: 0.6\nseed: 0\npreset: quick\nisp: {rounds: [1]}\n"
)
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without experiments: copying it saves each test two seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A main repository with one commit, as DVC presents it to a stage of `dvc repro`."""
    root = tmp_path / "main repo"
    (root / ".dvc").mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def repo(root: Path, schema: Path) -> Path:
    """The same with an MLflow database."""
    shutil.copy(schema, root / "mlflow.db")
    return root


def client_of(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def runs_of(folder: Path) -> tuple[list[Any], list[Any]]:
    """Parents and children in the database, oldest first."""
    client = client_of(folder)
    experiment = client.get_experiment_by_name("instant-soup").experiment_id
    runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    is_child = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return [run for run in runs if run not in is_child], is_child


def curve_of(folder: Path, run: Any, key: str) -> list[tuple[int, float]]:
    history = client_of(folder).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


def artifacts_of(folder: Path, run: Any, path: str | None = None) -> list[str]:
    return sorted(a.path for a in client_of(folder).list_artifacts(run.info.run_id, path))


def start_python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def waiting_records() -> list[dict[str, Any]]:
    files = sorted(spool_folder().glob("*/record.json"))
    return [json.loads(file.read_text()) for file in files]


def test_a_stage_becomes_a_child_of_its_pipelines_run(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "calibrate@2")
    plot = tmp_path / "plot.png"
    plot.write_bytes(b"first")
    began = time.time() * 1000
    settings = {"training": {"epochs": 3, "warmup": None}, "rounds": [{"id": 1}], "odd@key": True}
    with stage_run("calibrate round 2", settings, {"method": "isp", "sparsity": None}) as run:
        for step in (1, 2, 3):
            run.curve(step, loss=1 / step, accuracy=0.5 + step / 10)
        run.summary(accuracy=0.9)
        run.artifact(plot)
        run.artifact(plot, "plots")
        plot.write_bytes(b"changed later")
        sum(i * i for i in range(300_000))  # some CPU time to measure
    assert flush() == 1

    [parent], [child] = runs_of(repo)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    commit_tag = {"git_commit": commit.stdout.strip()}
    assert child.info.run_name == "calibrate round 2"
    assert child.info.status == "FINISHED"
    assert began - 1 <= child.info.start_time <= child.info.end_time <= time.time() * 1000
    assert child.data.params == {
        "training.epochs": "3",
        "training.warmup": "None",
        "rounds": '[{"id": 1}]',
        "odd_key": "True",
    }
    expected = {"method": "isp", "dvc_stage": "calibrate@2", **commit_tag}
    assert child.data.tags.items() >= expected.items()
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert not {"sparsity", "dvc_exp_name"} & child.data.tags.keys()

    assert curve_of(repo, child, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert child.data.metrics["accuracy"] == 0.9  # the summary, not the curve's last point
    system = {k: v for k, v in child.data.metrics.items() if k.startswith("system/")}
    assert 0 < system["system/cpu_seconds"] < 60
    assert 0 < system["system/wall_seconds"] < 60
    assert 5 < system["system/peak_rss_mib"] < 100_000
    assert system["system/threads"] >= 1

    assert artifacts_of(repo, child) == ["plot.png", "plots"]
    assert artifacts_of(repo, child, "plots") == ["plots/plot.png"]
    stored = list((repo / "mlartifacts").rglob("plot.png"))
    assert [path.read_bytes() for path in stored] == [b"first", b"first"]

    assert parent.info.run_name == "tiny · reviews · 60 % · seed 0"
    assert parent.info.status == "RUNNING"
    assert parent.data.params["isp.rounds"] == "[1]"
    assert parent.data.params["sparsity"] == "0.6"
    top = {"model": "tiny", "dataset": "reviews", "sparsity": "0.6", "seed": "0", "preset": "quick"}
    assert parent.data.tags.items() >= {**top, **commit_tag}.items()
    assert not parent.data.metrics
    assert list(spool_folder().iterdir()) == []
    assert flush() == 0


def test_metrics_without_a_finite_value_are_skipped(repo: Path) -> None:
    with stage_run("stage", {}, {}) as run:
        run.curve(1, loss=float("nan"), accuracy=None)
        run.curve(2, loss=2, accuracy=float("inf"))
        run.summary(**{"f1": None, "mse": float("nan"), "layer@0": 1})
    assert flush(quiet=False) == 1
    _, [child] = runs_of(repo)
    own = {k: v for k, v in child.data.metrics.items() if not k.startswith("system/")}
    assert own == {"loss": 2.0, "layer_0": 1.0}
    assert curve_of(repo, child, "loss") == [(2, 2.0)]


def test_more_than_one_batch_of_everything(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    real, sizes = MlflowClient.log_batch, []

    def log_batch(self: Any, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        sizes.append((len(metrics), len(params)))
        real(self, run_id, metrics=metrics, params=params)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    long = {"text": "x" * 7000, "list": ["x" * 7000]}
    with stage_run("stage", {f"key{i}": i for i in range(250)} | long, {}) as run:
        for step in range(900):
            run.curve(step, a=step, b=-step, c=0)
    # A server refuses more than this; the SQLite store happens not to mind.
    assert {len(text) for text in run.record["params"].values()} == {1, 2, 3, 6000}
    assert flush(quiet=False) == 1
    assert max(metrics for metrics, _ in sizes) == 1000
    assert max(params for _, params in sizes) == 100

    _, [child] = runs_of(repo)
    assert len(child.data.params) == 252
    assert child.data.params["key249"] == "249"
    assert child.data.params["text"] == "x" * 6000
    assert curve_of(repo, child, "a") == [(step, step) for step in range(900)]
    assert len(curve_of(repo, child, "b")) == len(curve_of(repo, child, "c")) == 900


def test_status_says_how_the_stage_ended_and_exceptions_propagate(repo: Path) -> None:
    endings: list[tuple[BaseException, str]] = [
        (ValueError("no"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit("error: no"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (SystemExit(0), "FINISHED"),
    ]
    for i, (error, _) in enumerate(endings):
        with pytest.raises(type(error)) as caught, stage_run(f"stage {i}", {}, {}) as run:
            run.curve(1, loss=1)
            raise error
        assert caught.value is error
    assert flush() == len(endings)
    [parent], children = runs_of(repo)
    found = {child.info.run_name: child.info.status for child in children}
    assert found == {f"stage {i}": status for i, (_, status) in enumerate(endings)}
    assert all(child.data.metrics["loss"] == 1 for child in children)
    assert parent.info.status == "RUNNING"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ended_by_a_signal_is_killed(repo: Path, number: signal.Signals) -> None:
    code = """
import time
from instant_soup.pipeline import tracking
with tracking.stage_run("long stage", {}, {}) as run:
    run.curve(1, loss=0.5)
    tracking.LIVE_SECONDS = run._live_every = 0
    tracking.flush = lambda **_: 0  # live() writes the record; mirror it below
    run.live()
    run.curve(2, loss=0.25)
    print("ready", flush=True)
    time.sleep(60)
"""
    process = start_python(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if number == signal.SIGKILL:
        assert flush() == 1  # while it lives
        assert runs_of(repo)[1][0].info.status == "RUNNING"
        assert len(waiting_records()) == 1
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert flush() == 1
    _, [child] = runs_of(repo)
    assert child.info.status == "KILLED"
    # SIGKILL leaves no time to write what came after the last live().
    known = [(1, 0.5)] if number == signal.SIGKILL else [(1, 0.5), (2, 0.25)]
    assert curve_of(repo, child, "loss") == known
    assert waiting_records() == []


def test_stages_share_a_parent_which_the_last_one_closes(repo: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    table.write_text("| method |")
    with stage_run("dense", {"epochs": 1}, {}) as run:
        run.summary(accuracy=0.8)
    assert flush() == 1
    with stage_run("tables", {}, {}, closes_parent=True) as run:
        run.summary(best=0.9)
        run.artifact(table)
        assert flush() == 1  # still running: must not close the parent
        assert runs_of(repo)[0][0].info.status == "RUNNING"
    assert flush() == 1

    [parent], children = runs_of(repo)
    assert [child.info.run_name for child in children] == ["dense", "tables"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"best": 0.9}
    assert children[1].data.metrics["best"] == 0.9
    assert artifacts_of(repo, parent) == artifacts_of(repo, children[1]) == ["table.md"]

    with stage_run("dense", {"epochs": 2}, {}):
        pass
    assert flush() == 1
    [parent], children = runs_of(repo)
    assert (parent.info.status, len(children)) == ("RUNNING", 3)

    (repo / "params.yaml").write_text(PARAMS.replace("0.6", "0.8"))
    with stage_run("dense", {}, {}):
        pass
    assert flush() == 1
    parents, _ = runs_of(repo)
    assert [parent.data.params["sparsity"] for parent in parents] == ["0.6", "0.8"]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ("", "repro-.{8}-.{8}"),
        ("model: tiny\n", "repro-.{8}-.{8}"),
        (PARAMS.replace("0.6", "half"), "tiny · reviews · half · seed 0"),
    ],
)
def test_a_pipelines_run_has_a_name_whatever_params_say(repo: Path, params: str, name: str) -> None:
    (repo / "params.yaml").write_text(params)
    with stage_run("plan", {}, {}):
        pass
    assert flush(quiet=False) == 1
    [parent], _ = runs_of(repo)
    assert re.fullmatch(name, parent.info.run_name)


def test_mlflow_opens_with_pages_for_training_also_of_an_older_database(repo: Path) -> None:
    client = client_of(repo)
    client.create_experiment("instant-soup", tags={"mlflow.note.content": "mine"})
    tracking.ensure_database()
    tags = client.get_experiment_by_name("instant-soup").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert tags["mlflow.note.content"] == "mine"


def test_a_failed_last_stage_leaves_the_parent_open(repo: Path) -> None:
    with pytest.raises(ValueError), stage_run("tables", {}, {}, closes_parent=True):
        raise ValueError
    assert flush() == 1
    [parent], [child] = runs_of(repo)
    assert (parent.info.status, child.info.status) == ("RUNNING", "FAILED")


def test_live_shows_a_running_stage_without_repeating_points(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LIVE_SECONDS", 0.0)
    with stage_run("retrain", {"epochs": 2}, {}) as run:
        for step in range(5):
            run.curve(step, loss=step)
        run.summary(accuracy=1)
        run.live()
        _, [child] = runs_of(repo)
        assert child.info.status == "RUNNING"
        assert child.data.params == {"epochs": "2"}
        assert curve_of(repo, child, "loss") == [(step, step) for step in range(5)]
        assert "accuracy" not in child.data.metrics
        for step in range(5, 8):
            run.curve(step, loss=step)
        run.live()
        assert len(curve_of(repo, child, "loss")) == 8
        run.curve(8, loss=8)
    assert flush() == 1
    _, [after] = runs_of(repo)
    assert after.info.run_id == child.info.run_id
    assert (after.info.status, after.data.metrics["accuracy"]) == ("FINISHED", 1)
    assert curve_of(repo, after, "loss") == [(step, step) for step in range(9)]


def test_live_waits_between_flushes_and_only_warns(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def broken(**_: bool) -> int:
        calls.append(1)
        raise RuntimeError("no\nserver")

    monkeypatch.setattr(tracking, "flush", broken)
    with stage_run("retrain", {}, {}) as run:
        run.curve(1, loss=1)
        run.live()
        assert not calls
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61)
        run.live()
        run.live()
        assert len(calls) == 1
        assert waiting_records()[0]["curve"][0][2] == {"loss": 1}
        monkeypatch.setattr(time, "monotonic", lambda: now + 61 + 119)
        run.live()
        assert len(calls) == 1  # after a failure it waits twice as long
        monkeypatch.setattr(time, "monotonic", lambda: now + 61 + 121)
        run.live()
        assert len(calls) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("no server" in line for line in lines)


def test_a_crash_anywhere_in_flush_repeats_nothing(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "note.md").write_text("note")
    monkeypatch.setattr(tracking, "METRICS_PER_BATCH", 4)

    class Crash(BaseException):
        """Like a kill: not caught as an Exception."""

    crash_at, calls = 0, 0

    def crashing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*args, **kwargs)  # done, but flush() never hears of it
            if calls == crash_at:
                raise Crash
            return result

        return call

    for name in ("create_run", "log_batch", "log_artifacts", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, crashing(getattr(MlflowClient, name)))
    monkeypatch.setattr(tracking, "new_file", crashing(tracking.new_file))
    monkeypatch.setattr(Path, "unlink", crashing(Path.unlink))

    for crash in range(1, 50):
        (repo / "params.yaml").write_text(PARAMS + f"crash: {crash}\n")
        crash_at = 0
        with stage_run(f"stage {crash}", {"a": 1}, {}, closes_parent=True) as run:
            for step in range(5):
                run.curve(step, loss=step, accuracy=1)
            run.summary(f1=0.5)
            run.artifact(tmp_path / "note.md")
        crash_at, calls = crash, 0
        try:
            flush()
        except Crash:
            crash_at = 0
            flush()
        else:
            break
    assert crash > 12  # it went through all the calls, the last time without a crash

    assert list(spool_folder().iterdir()) == []
    parents, children = runs_of(repo)
    assert len(parents) == len(children) == crash
    for run in children:
        assert run.info.status == "FINISHED"
        assert run.data.params == {"a": "1"}
        assert curve_of(repo, run, "loss") == [(step, step) for step in range(5)]
        assert len(curve_of(repo, run, "accuracy")) == 5
    for run in parents + children:
        assert run.info.status == "FINISHED"
        assert curve_of(repo, run, "f1") == [(0, 0.5)]
        assert artifacts_of(repo, run) == ["note.md"]


def test_a_flush_stopped_while_it_removes_a_record(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_run("stage", {}, {}) as run:
        run.artifact("params.yaml")
    real = shutil.rmtree

    def stopped(folder: Path, **_: Any) -> None:
        real(folder / "artifacts")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        flush()
    monkeypatch.setattr(shutil, "rmtree", real)
    flush(quiet=False)
    assert list(spool_folder().iterdir()) == []
    _, [child] = runs_of(repo)
    assert artifacts_of(repo, child) == ["params.yaml"]


def test_flush_killed_between_batches(root: Path) -> None:
    with stage_run("stage", {}, {}) as run:
        for step in range(2500):
            run.curve(step, loss=step)
    code = """
import os, signal
from instant_soup.pipeline import tracking
real, batches = tracking._log_metrics, []
def log_metrics(client, run, points):
    if len(batches) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(client, run, points)
    batches.append(1)
tracking._log_metrics = log_metrics
tracking.flush()
"""
    process = start_python(code)
    # Nothing on either stream, though it made the database: MLflow is chatty about that.
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == -signal.SIGKILL
    _, [child] = runs_of(root)
    assert len(curve_of(root, child, "loss")) == 2000
    [sidecar] = spool_folder().glob("*/mirrored.json")
    assert json.loads(sidecar.read_text()) == {"run_id": child.info.run_id, "points": 2000}

    assert flush() == 1
    [_], [after] = runs_of(root)
    assert after.info.run_id == child.info.run_id
    assert curve_of(root, after, "loss") == [(step, step) for step in range(2500)]


def test_a_database_lost_while_a_stage_runs_gets_everything_again(
    repo: Path, tmp_path: Path, schema: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_run("stage", {}, {}) as run:
        run.curve(1, loss=1)
        monkeypatch.setattr(run, "_live_every", 0)
        run.live()
        (tmp_path / "new").mkdir()
        shutil.copy(schema, tmp_path / "new" / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
        run.curve(2, loss=2)
    assert flush() == 1
    _, [child] = runs_of(tmp_path / "new")
    assert curve_of(tmp_path / "new", child, "loss") == [(1, 1), (2, 2)]


def test_processes_that_record_and_flush_at_once_lose_nothing(root: Path) -> None:
    code = """
import os
os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
import mlflow  # once for all four: seconds
from instant_soup.pipeline import tracking
def work(number):
    if number % 2:
        tracking.ensure_database()
    for i in range(3):
        with tracking.stage_run(f"stage {number}-{i}", {}, {}) as run:
            for step in range(20):
                run.curve(step, loss=step)
        tracking.flush(quiet=False, wait=i == 2)
children = []
for number in range(4):
    children.append(os.fork())
    if children[-1] == 0:
        work(number)
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""
    process = start_python(code, MLFLOW_DISABLE_TELEMETRY="true")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    [parent], children = runs_of(root)
    names = sorted(child.info.run_name for child in children)
    assert names == [f"stage {number}-{i}" for number in range(4) for i in range(3)]
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert curve_of(root, child, "loss") == [(step, step) for step in range(20)]
    assert waiting_records() == []


def test_an_experiment_in_a_copy_reports_to_the_main_repository(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = repo / ".dvc" / "tmp" / "exps" / "tmpabc"
    (copy / ".dvc").mkdir(parents=True)
    (copy / "params.yaml").write_text(PARAMS.replace("0.6", "0.9"))
    (copy / "result.json").write_text("{}")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "tidy-moth")
    with stage_run("evaluate", {}, {}) as run:
        run.artifact("result.json")
    shutil.rmtree(copy)  # DVC does, before `make ui` flushes
    monkeypatch.chdir(repo)
    monkeypatch.delenv("DVC_EXP_NAME")
    assert flush() == 1
    [parent], [child] = runs_of(repo)
    assert parent.info.run_name == "tiny · reviews · 90 % · seed 0 · tidy-moth"
    assert parent.data.params["sparsity"] == parent.data.tags["sparsity"] == "0.9"
    assert parent.data.tags["dvc_exp_name"] == child.data.tags["dvc_exp_name"] == "tidy-moth"
    assert artifacts_of(repo, child) == ["result.json"]
    assert list((repo / "mlartifacts").rglob("result.json"))


def test_a_name_used_again_with_other_params_still_gets_its_stages(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "again")
    for sparsity in ("0.6", "0.7"):  # dvc exp run --force -n again -S sparsity=…
        (repo / "params.yaml").write_text(PARAMS.replace("0.6", sparsity))
        with stage_run("stage", {"sparsity": sparsity}, {}):
            pass
    assert flush(quiet=False) == 2
    [parent], children = runs_of(repo)
    assert parent.data.params["sparsity"] == "0.6"  # MLflow refuses to change a param
    assert sorted(child.data.params["sparsity"] for child in children) == ["0.6", "0.7"]


def test_tracking_uri_wins(
    root: Path, tmp_path: Path, schema: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(schema, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with stage_run("stage", {}, {}):
        pass
    assert flush() == 1
    assert len(runs_of(tmp_path)[1]) == 1
    assert not (root / "mlflow.db").exists()


def test_records_wait_while_mlflow_is_out_of_reach(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage_run("stage", {}, {}) as run:
        run.summary(f1=1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    assert flush() == 0
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("tracking: ")]) == 1
    with pytest.raises(RuntimeError, match=UNREACHABLE):
        flush(quiet=False)
    assert len(waiting_records()) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert flush() == 1
    assert runs_of(repo)[1][0].data.metrics["f1"] == 1


def test_a_damaged_record_does_not_hold_up_the_others(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second", "third"):
        with stage_run(name, {}, {}):
            pass
    broken = sorted(spool_folder().iterdir())[0]
    (broken / "record.json").write_text("{")
    assert flush() == 2
    assert broken.name in capsys.readouterr().err
    assert len(runs_of(repo)[1]) == 2


@pytest.mark.parametrize(
    "change",
    [
        "{",
        "[]",
        {"params": None},
        {"start_ms": "now"},
        {"status": "HALF"},
        {"summary": {"f1": "good"}},
        {"curve": [[1, 2]]},
        {"curve": [[1, 2, {"loss": None}]]},
    ],
)
def test_a_damaged_record_is_set_aside_and_no_later_flush_fails(
    repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    with stage_run("stage", {}, {}):
        pass
    [broken] = spool_folder().iterdir()
    record = broken / "record.json"
    if isinstance(change, dict):
        record.write_text(json.dumps(json.loads(record.read_text()) | change))
    else:
        record.write_text(change)
    monkeypatch.setattr(tracking, "_connect", lambda: (None, ""))
    assert flush(quiet=False) == 0
    aside = broken.with_name(f".damaged-{broken.name}")
    assert str(aside) in capsys.readouterr().err and (aside / "record.json").exists()
    assert flush(quiet=False) == 0
    assert capsys.readouterr().err == ""


def test_what_a_mirrored_record_left_may_be_damaged(repo: Path) -> None:
    with stage_run("stage", {}, {}) as run:
        for step in (1, 2):
            run.curve(step, loss=1 / step)
        run._write(run.folder)
        assert flush(quiet=False) == 1
        (run.folder / "mirrored.json").write_text("{")
        (run.folder / "artifacts").rmdir()
    assert flush(quiet=False) == 1
    [child] = runs_of(repo)[1]
    assert curve_of(repo, child, "loss") == [(1, 1.0), (2, 0.5)]


def told_by(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one line with which the command line fails."""
    monkeypatch.setattr(sys, "argv", ["tracking", command])
    with pytest.raises(SystemExit) as caught:
        tracking.main()
    assert str(caught.value.code).startswith("error: ") and "\n" not in str(caught.value.code)
    return str(caught.value.code)


def test_a_deleted_experiment_is_said_with_what_brings_it_back(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.ensure_database()
    client = client_of(repo)
    experiment = client.get_experiment_by_name("instant-soup").experiment_id
    client.delete_experiment(experiment)
    with stage_run("stage", {}, {}):
        pass
    for command in ("init", "flush"):
        message = told_by(command, monkeypatch)
        assert "instant-soup is deleted" in message and message.count("mlflow.db") == 2
        assert message.endswith(f"mlflow experiments restore --experiment-id {experiment}")
    assert len(waiting_records()) == 1
    client.restore_experiment(experiment)
    tracking.ensure_database()
    assert flush(quiet=False) == 1


def test_a_database_that_is_none_is_said_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "mlflow.db").write_bytes(b"no database" * 100)
    assert "mlflow.db: cannot be used: " in told_by("init", monkeypatch)


def test_flush_without_waiting_leaves_a_busy_database_alone(repo: Path) -> None:
    with stage_run("stage", {}, {}):
        pass
    with tracking._flush_lock(wait=True):
        assert flush(wait=False) == 0
    assert len(waiting_records()) == 1
    assert flush(wait=False) == 1


def test_a_final_record_that_cannot_be_written_does_not_fail_the_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with pytest.raises(ValueError, match="the stage's own"), stage_run("stage", {}, {}):
        monkeypatch.setattr(tracking, "_write_json", full)
        raise ValueError("the stage's own")
    assert "No space left" in capsys.readouterr().err


def test_command_line(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tracking", "init"])
    tracking.main()
    assert runs_of(repo) == ([], [])  # the experiment exists
    with stage_run("stage", {}, {}):
        pass
    monkeypatch.setattr(sys, "argv", ["tracking", "flush"])
    capsys.readouterr()
    tracking.main()
    said, link = capsys.readouterr().out.splitlines()
    assert said.startswith("1 record")
    assert re.search(r"http://127.0.0.1:5000/#/experiments/\d+/runs\?.*ShareKey=pruning$", link)
    assert len(runs_of(repo)[1]) == 1


def test_recording_needs_neither_mlflow_nor_torch_nor_git(root: Path, tmp_path: Path) -> None:
    code = """
import sys
from instant_soup.pipeline.tracking import stage_run
with stage_run("stage", {"a": 1}, {"method": "isp"}) as run:
    run.curve(1, loss=1)
    run.live()
    run.summary(f1=1)
print(sorted({"mlflow", "torch", "numpy", "dvc"} & sys.modules.keys()))
"""
    process = start_python(code, PATH=str(tmp_path))
    assert process.communicate(timeout=60) == ("[]\n", "")
    [record] = waiting_records()
    assert record["status"] == "FINISHED"
    assert record["pipeline"].startswith("repro-nogit-")
    assert "git_commit" not in record["tags"]
