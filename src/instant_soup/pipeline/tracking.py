"""Mirror what the stages do into MLflow, without making every stage pay for importing MLflow.

A stage writes a small *record* (JSON, and copies of small artefact files) into a spool folder of
the main repository. `flush()` mirrors the spool into MLflow. The last stage calls it, `make ui`
does, and so does `StageRun.live()` in stages that train for long. A record stays in the spool until
it has been mirrored, so a broken or missing MLflow delays a result but never loses one.

    with stage_run("calibrate round 2", settings, {"method": "isp"}) as run:
        for step in range(steps):
            ...
            run.curve(step, loss=loss)
            run.live()
        run.summary(accuracy=accuracy)

    python -m instant_soup.pipeline.tracking init     # create the database and the experiment
    python -m instant_soup.pipeline.tracking flush    # mirror the spool
"""

import argparse
import fcntl
import hashlib
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from instant_soup.errors import UserError
from instant_soup.files import new_file, project_root

EXPERIMENT = "instant-soup"
PARENT_KEY, CHILD_KEY = "instant_soup.pipeline", "instant_soup.record"  # tags to find runs by
LIVE_SECONDS = 60.0  # live() flushes at most this often
PARENT_TAGS = ("model", "dataset", "sparsity", "seed", "preset")  # from params.yaml
# A view of the list of runs: whole runs only, with what somebody who prunes looks for.
VIEW = {
    "searchFilter": f"tags.`{PARENT_KEY}` != ''",
    "selectedColumns": [
        "attributes.`Created`",
        *(f"metrics.`accuracy/{row}`" for row in ("dense", "one_shot", "isp", "isp_plus")),
        *("metrics.`tera_flops/dense`", "metrics.`tera_flops/isp`"),
        *("tags.`sparsity`", "tags.`seed`", "tags.`preset`"),
    ],
}
# What MLflow's pages make of the experiment. Without a kind they open with pages for chats.
EXPERIMENT_TAGS = {
    "mlflow.sharedViewState.pruning": json.dumps(VIEW),
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "A run for each `dvc repro` and each experiment, named after model, data, sparsity and "
        "seed; in it a run for each stage. Metrics of a whole run are METRIC/METHOD. Test metrics, "
        "sparsity, steps and FLOPs come with the last stage, `tables`."
    ),
}
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # limits of MLflow's log_batch
PARAM_LENGTH, TAG_LENGTH = 6000, 5000  # characters; longer values are cut
STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
RECORD: dict[str, type] = {  # a record's keys and their kinds
    **dict.fromkeys(("id", "stage", "status", "pipeline"), str),
    **dict.fromkeys(("params", "tags", "pipeline_params", "pipeline_tags"), dict),
    **dict.fromkeys(("summary", "system"), dict),
    **dict.fromkeys(("start_ms", "updated_ms"), int),
    **{"closes_parent": bool, "curve": list},
}


class DamagedRecord(ValueError):
    """A record of the spool that no flush could ever mirror."""


def spool_folder() -> Path:
    """Where records wait to be mirrored (git-ignored by DVC itself)."""
    return project_root() / ".dvc" / "tmp" / "instant-soup" / "mlflow"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI if set, else a SQLite database in the main repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"


# ---------------------------------------------------------------------------------------------
# Recording: runs in every stage, never imports MLflow.


class StageRun:
    """One stage's record while the stage runs; made by `stage_run`."""

    def __init__(
        self, stage: str, settings: dict[str, Any], tags: dict[str, Any], closes_parent: bool
    ) -> None:
        commit, experiment = _git_commit(), os.environ.get("DVC_EXP_NAME")
        params_text, pipeline = _pipeline_params()
        # Without an experiment's name, commit and parameters stand for the pipeline run, so an
        # interrupted `dvc repro` goes on in the parent run that it began.
        digest = hashlib.sha256(params_text.encode()).hexdigest()[:8]
        now = datetime.now(UTC)
        own_tags = {"git_commit": commit, "dvc_exp_name": experiment}
        parent_tags = {key: pipeline.get(key) for key in PARENT_TAGS}
        stage_tags = {"stage": stage, "dvc_stage": os.environ.get("DVC_STAGE")}
        self.record: dict[str, Any] = {
            "id": f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}",
            "stage": stage,
            "status": "RUNNING",
            "start_ms": int(now.timestamp() * 1000),
            "params": flatten(settings),
            "tags": _tag_values({**parent_tags, **stage_tags, **tags, **own_tags}),
            "pipeline": experiment or f"repro-{commit[:8] if commit else 'nogit'}-{digest}",
            "pipeline_params": flatten(pipeline),
            "pipeline_tags": _tag_values({**parent_tags, **own_tags}),
            "closes_parent": closes_parent,
            "curve": [],
            "summary": {},
        }
        self._wall, self._cpu = time.monotonic(), _cpu_seconds()
        self._flushed, self._live_every = self._wall, LIVE_SECONDS

        # Made under a dotted name, which flush() ignores, then renamed: never seen half made.
        self.folder = spool_folder() / self.record["id"]
        new = self.folder.with_name("." + self.folder.name)
        (new / "artifacts").mkdir(parents=True)
        # The lock tells flush() that this process lives. The system drops it at death, however
        # that comes; a process id would mislead after a reboot or in another container.
        self._alive = (new / "alive").open("w")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._write(new)
        os.replace(new, self.folder)

    def curve(self, step: int, **metrics: Any) -> None:
        """Append one row of step metrics, stamped with the time; None, NaN and inf are skipped."""
        row = _finite(metrics)
        if row:
            self.record["curve"].append([int(step), int(time.time() * 1000), row])

    def summary(self, **metrics: Any) -> None:
        """Set final scalar metrics; None, NaN and inf are skipped."""
        self.record["summary"].update(_finite(metrics))

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a small file into the record at once; the file may change or go afterwards.

        Args:
            path: The file.
            folder: A folder within the run's artefacts.

        Raises:
            OSError: If it can't be copied.
        """
        target = self.folder / "artifacts" / (folder or "")
        target.mkdir(parents=True, exist_ok=True)
        copy = self.folder / ".copy"
        shutil.copyfile(path, copy)
        os.replace(copy, target / Path(path).name)

    def live(self) -> None:
        """Bring MLflow up to date if LIVE_SECONDS have passed since the start or the last time.

        Otherwise it costs one comparison, so call it at every step. Trouble becomes one warning
        line.
        """
        if time.monotonic() - self._flushed < self._live_every:
            return
        try:
            self._write(self.folder)
            flush(quiet=False, wait=False)
            self._live_every = LIVE_SECONDS
        except Exception as error:  # whatever MLflow raises, training goes on
            _warn(f"MLflow is not up to date, the record is kept: {error}")
            self._live_every *= 2  # a dead server costs a time-out at every attempt
        self._flushed = time.monotonic()

    def close(self, status: str) -> None:
        """Write the final record; `stage_run` calls it. Trouble becomes one warning line."""
        self.record["status"] = status
        try:
            self._write(self.folder)
        except OSError as error:  # must not replace the stage's own exception, or fail the stage
            _warn(f"could not write the record {self.folder}: {error}")
        self._alive.close()

    def _write(self, folder: Path) -> None:
        self.record["updated_ms"] = int(time.time() * 1000)
        self.record["system"] = {
            "system/wall_seconds": time.monotonic() - self._wall,
            "system/cpu_seconds": _cpu_seconds() - self._cpu,
            "system/peak_rss_mib": _peak_rss_mib(),
            "system/threads": float(_threads()),
        }
        _write_json(folder / "record.json", self.record)


@contextmanager
def stage_run(
    stage: str, settings: dict[str, Any], tags: dict[str, Any], closes_parent: bool = False
) -> Iterator[StageRun]:
    """Record what a stage does, from here to the end of the block.

    `stage` names the run, e.g. "calibrate round 2"; `settings` is a nested dict (flattened to
    params with dotted names); `tags` with value None are left out. `closes_parent` marks the
    pipeline's last stage: its summary and artefacts go on the pipeline's run too, which it ends.
    That stage calls `flush()` *after* the block, when its own record is complete.

    The record ends FINISHED, FAILED (exception, or exit with an error code) or KILLED (Ctrl-C, or
    exit by a signal); exceptions propagate. Raises OSError if the spool can't be written at the
    start.
    """
    # SIGTERM (a scheduler's time limit) would end Python on the spot, without a final record.
    catch = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if catch:
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        run = StageRun(stage, settings, tags, closes_parent)
        try:
            yield run
        except BaseException as error:
            run.close(_status_of(error))
            raise
        run.close("FINISHED")
    finally:
        if catch:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested dict as MLflow params: dotted names, text values, lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = _name(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            flat.update(flatten(value, name + "."))
        elif isinstance(value, (list, tuple, dict)):
            flat[name] = json.dumps(value, default=str)[:PARAM_LENGTH]
        else:
            flat[name] = str(value)[:PARAM_LENGTH]
    return flat


def _name(text: str) -> str:
    return re.sub(r"[^\w.\- /:]", "_", text)  # MLflow refuses other characters


def _tag_values(tags: dict[str, Any]) -> dict[str, str]:
    return {key: str(value)[:TAG_LENGTH] for key, value in tags.items() if value is not None}


def _finite(metrics: dict[str, Any]) -> dict[str, float]:
    numbers = {_name(key): float(v) for key, v in metrics.items() if v is not None}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _pipeline_params() -> tuple[str, dict[str, Any]]:
    # From the current folder, not the root: an experiment's copy has its own params.yaml.
    try:
        text = Path("params.yaml").read_text()
        params = yaml.safe_load(text)
    except (OSError, yaml.YAMLError):
        return "", {}  # judging params.yaml is the plan stage's job
    return text, params if isinstance(params, dict) else {}


def _git_commit() -> str | None:
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return git.stdout.strip() if git.returncode == 0 else None


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_rss_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # macOS: bytes, Linux: KiB


def _threads() -> int:
    torch = sys.modules.get("torch")  # its compute threads say more; don't load it for that
    return torch.get_num_threads() if torch else threading.active_count()


def _exit_on_signal(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _status_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED"
        # Shells and _exit_on_signal report death by signal n as 128 + n.
        return "KILLED" if isinstance(error.code, int) and error.code > 128 else "FAILED"
    return "FAILED"


def _write_json(path: Path, data: Any) -> None:
    with new_file(path) as unfinished:
        unfinished.write_text(json.dumps(data))


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _warn(message: str) -> None:
    print(f"tracking: {_one_line(message)}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------
# Mirroring: one process at a time, under a file lock; the only place that imports MLflow.


def flush(quiet: bool = True, wait: bool = True) -> int:
    """Mirror all records into MLflow; return how many were mirrored.

    Finished records leave the spool. Those of running stages stay, and get their new curve rows
    the next time; one whose process is gone is closed as KILLED. A record that can't be mirrored
    stays too and does not hold up the others; a damaged one is set aside with a warning, as it
    never could be. If another process is flushing, wait for it, or with `wait=False` return 0.

    Trouble with MLflow becomes one warning line, or with `quiet=False` a RuntimeError.
    """
    done, trouble = 0, ""
    with _flush_lock(wait) as locked:
        folders = sorted(spool_folder().glob("[!.]*")) if locked else []
        try:
            client, experiment = _connect() if folders else (None, "")
            for folder in folders:
                try:
                    _mirror(client, experiment, folder)
                    done += 1
                except DamagedRecord as error:
                    if _alive(folder):  # it writes its record again
                        continue
                    aside = folder.with_name(f".damaged-{folder.name}")
                    os.replace(folder, aside)
                    _warn(f"a record of the spool is damaged ({error}); it is set aside: {aside}")
                except Exception as error:
                    trouble = trouble or f"{folder}: {error}"
        except UserError as error:
            trouble = str(error)
        except Exception as error:
            trouble = f"{tracking_uri()}: {error}"
    if trouble and not quiet:
        raise RuntimeError(trouble)
    if trouble:
        _warn(f"not all records are in MLflow, they are kept for the next flush: {trouble}")
    return done


def ensure_database() -> None:
    """Create the database and the experiment if they are missing; several at once are safe.

    Raises:
        UserError: If the tracking URI can't be used, or the experiment is deleted.
    """
    with _flush_lock(wait=True):
        try:
            _connect()
        except UserError:
            raise
        except Exception as error:  # whatever MLflow raises
            raise UserError(f"{tracking_uri()}: cannot be used: {_one_line(error)}") from None


@contextmanager
def _flush_lock(wait: bool) -> Iterator[bool]:
    path = spool_folder().with_name("mlflow.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True  # closing the file unlocks


def _connect() -> tuple[Any, str]:
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # MLflow retries for minutes by default; here a dead server must not stop a training.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient  # 1.5 s

    uri = tracking_uri()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        own = experiment.experiment_id
        if experiment.lifecycle_stage == "deleted":  # and takes no runs
            raise UserError(
                f"{uri}: the experiment {EXPERIMENT} is deleted; bring it back: "
                f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore "
                f"--experiment-id {own}"
            )
        for key in EXPERIMENT_TAGS.keys() - experiment.tags.keys():  # made by an older version
            client.set_experiment_tag(own, key, EXPERIMENT_TAGS[key])
        return client, own
    # MLflow would take the current folder, which DVC deletes if it is an experiment's copy. A
    # server chooses for itself.
    server = uri.startswith(("http", "databricks"))
    location = None if server else (project_root() / "mlartifacts").absolute().as_uri()
    return client, client.create_experiment(EXPERIMENT, location, EXPERIMENT_TAGS)


def _mirror(client: Any, experiment: str, folder: Path) -> None:
    """Bring MLflow up to the record.

    Every step may be repeated, so a crash anywhere is harmless: runs are found again by tag, params
    are only added, and MLflow stores a metric with the same key, step, time and value once.
    """
    if not (folder / "record.json").exists():
        shutil.rmtree(folder)  # a flush was stopped while it removed a mirrored record
        return
    dead = not _alive(folder)  # ask before reading: what a dead process left is final
    record = _read_record(folder)
    if dead and record["status"] == "RUNNING":
        record["status"] = "KILLED"
    status, end, pipeline = record["status"], record["updated_ms"], record["pipeline"]

    parent = _find_or_create(
        client, experiment, PARENT_KEY, pipeline, parent_name(record), record,
        record["pipeline_tags"],
    )  # fmt: skip
    tags = {**record["tags"], "mlflow.parentRunId": parent.info.run_id}
    child = _find_or_create(
        client, experiment, CHILD_KEY, record["id"], record["stage"], record, tags
    )
    _log_params(client, parent, record["pipeline_params"])
    _log_params(client, child, record["params"])

    points = [
        (key, value, stamp, step)
        for step, stamp, row in record["curve"]
        for key, value in row.items()
    ]
    sidecar = folder / "mirrored.json"
    # Another run id: the database was replaced since, so nothing of this record is in it.
    logged = _points_mirrored(sidecar, child.info.run_id)
    while logged < len(points):
        batch = points[logged : logged + METRICS_PER_BATCH]
        _log_metrics(client, child, batch)
        logged += len(batch)
        _write_json(sidecar, {"run_id": child.info.run_id, "points": logged})

    closed = record["closes_parent"] and status == "FINISHED"
    if status != "RUNNING":
        # At the curve's last step, so that the summary is the metric's latest value in MLflow.
        last_step = {key: step for key, _, _, step in points}
        summary = [(k, v, end, last_step.get(k, 0)) for k, v in record["summary"].items()]
        system = [(k, v, end, 0) for k, v in record["system"].items()]
        _log_metrics(client, child, summary + system)
        _log_artifacts(client, child, folder)
        if record["closes_parent"]:
            _log_metrics(client, parent, [(k, v, end, 0) for k, v in record["summary"].items()])
            _log_artifacts(client, parent, folder)
        client.set_terminated(child.info.run_id, status, end)
    if closed:
        client.set_terminated(parent.info.run_id, "FINISHED", end)
    elif parent.info.status != "RUNNING":
        client.update_run(parent.info.run_id, status="RUNNING")  # a closed pipeline goes on
    if status != "RUNNING":
        (folder / "record.json").unlink()  # first, or a stop in between would mirror it halved
        shutil.rmtree(folder)


def parent_name(record: dict[str, Any]) -> str:
    """A pipeline run's name: model, data, sparsity, seed, and its experiment's name if it has one.

    Where params.yaml does not say them: the pipeline's key.
    """
    tags = record["pipeline_tags"]
    if not {"model", "dataset", "sparsity", "seed"} <= tags.keys():
        return record["pipeline"]
    try:
        sparse = f"{100 * float(tags['sparsity']):g} %"
    except ValueError:  # the plan stage says so
        sparse = tags["sparsity"]
    parts = [tags["model"], tags["dataset"], sparse, f"seed {tags['seed']}"]
    return " · ".join([*parts, *filter(None, [tags.get("dvc_exp_name")])])


def _read_record(folder: Path) -> dict[str, Any]:
    """A record of the spool; DamagedRecord unless it has all that a stage writes."""
    try:
        record = json.loads((folder / "record.json").read_text())
    except ValueError as error:
        raise DamagedRecord(f"record.json: {error}") from None
    if not isinstance(record, dict):
        raise DamagedRecord("record.json: no record in it")
    for key, kind in RECORD.items():
        if not isinstance(record.get(key), kind):
            raise DamagedRecord(f"record.json: {key}: {record.get(key)!r}")
    flat = {**record["summary"], **record["system"]}
    try:
        for step, stamp, row in record["curve"]:
            flat |= {f"{step:d} {stamp:d} {key}": value for key, value in row.items()}
        odd = [key for key, value in flat.items() if not math.isfinite(value)]
    except (AttributeError, TypeError, ValueError) as error:
        raise DamagedRecord(f"record.json: a metric: {error}") from None
    if odd or record["status"] not in STATUSES:
        raise DamagedRecord(f"record.json: {odd[0] if odd else record['status']}")
    return record


def _points_mirrored(sidecar: Path, run_id: str) -> int:
    """How many of a record's points are in an MLflow run; 0 where nothing readable says so.

    MLflow keeps one of equal points, so writing them again does no harm.
    """
    try:
        known = json.loads(sidecar.read_text())
        return int(known["points"]) if known["run_id"] == run_id else 0
    except (OSError, KeyError, TypeError, ValueError):
        return 0


def _alive(folder: Path) -> bool:
    if not (folder / "alive").exists():
        return False
    with (folder / "alive").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _find_or_create(
    client: Any, experiment: str, key: str, value: str, name: str, record: dict, tags: dict
) -> Any:
    value = value.replace("'", "_")  # MLflow's filter language has no escape for it
    found = client.search_runs([experiment], f"tags.`{key}` = '{value}'", max_results=1)
    if found:
        return found[0]
    # With its tags in one transaction, so a crash can't leave a run that is not found again.
    tags = {**tags, key: value}
    return client.create_run(experiment, start_time=record["start_ms"], tags=tags, run_name=name)


def _log_params(client: Any, run: Any, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    # Only what is missing: MLflow refuses to change a param.
    new = [Param(key, value) for key, value in params.items() if key not in run.data.params]
    for i in range(0, len(new), PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=new[i : i + PARAMS_PER_BATCH])


def _log_metrics(client: Any, run: Any, points: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(key, value, stamp, step) for key, value, stamp, step in points]
    for i in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(run.info.run_id, metrics=metrics[i : i + METRICS_PER_BATCH])


def _log_artifacts(client: Any, run: Any, folder: Path) -> None:
    if any((folder / "artifacts").glob("*")):
        client.log_artifacts(run.info.run_id, str(folder / "artifacts"))


def page_of_runs() -> str:
    """The address of MLflow's list of runs with the columns of VIEW, as `make ui` serves it.

    Raises:
        UserError: If the tracking URI can't be used.
    """
    ensure_database()
    _, experiment = _connect()
    uri = tracking_uri()
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    view = "workflowType=machine_learning&viewStateShareKey=pruning"
    return f"{server}/#/experiments/{experiment}/runs?{view}"


def main() -> None:
    """Command line: `init` creates the database, `flush` (the default) mirrors the spool."""
    parser = argparse.ArgumentParser(
        prog="python -m instant_soup.pipeline.tracking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=["init", "flush"],
        default="flush",
        help="create the database, or bring MLflow up to the records (the default)",
    )
    try:
        if parser.parse_args().command == "init":
            ensure_database()
            print(f"MLflow database ready: {tracking_uri()}")
        else:
            print(f"{flush(quiet=False)} records mirrored to {tracking_uri()}")
            print(f"the runs: {page_of_runs()}")
    except (UserError, RuntimeError, OSError) as error:
        sys.exit(f"error: {_one_line(error)}")


if __name__ == "__main__":
    main()
