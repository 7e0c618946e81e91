"""Several stages at once: the order of the graph, real DVC on toy stages, failures."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from helpers import environment
from instant_soup.pipeline import jobs, processes
from instant_soup.pipeline.jobs import affected_stages

# Each toy stage notes when it began and ended, then writes its output.
TOY = """
import pathlib, sys, time
name, *needs = sys.argv[1:]
started = time.time()
assert all(pathlib.Path(n).exists() for n in needs)
time.sleep(4 if name in "abc" else 0)
if pathlib.Path("break").read_text().strip() == name:
    sys.exit(f"error: {name} is broken")
pathlib.Path(name).write_text("".join(pathlib.Path(n).read_text() for n in needs) + name)
with open("log", "a") as log:
    log.write(f"{name} {started} {time.time()}\\n")
"""
NEEDS = {"plan": ["params"], "a": ["plan"], "b": ["plan"], "c": ["plan"], "d": ["a", "b", "c"]}


@st.composite
def graphs(draw) -> dict[str, set[str]]:
    """Stages in random order, each needing some of those before it by number."""
    size = draw(st.integers(1, 9))
    needs = {
        str(i): draw(st.sets(st.sampled_from([str(j) for j in range(i)]))) if i else set()
        for i in range(size)
    }
    return {name: needs[name] for name in draw(st.permutations(list(needs)))}


@given(graphs(), st.data())
def test_what_changed_and_all_behind_it_run_in_the_graphs_order(needs, data) -> None:
    changed = data.draw(st.sets(st.sampled_from(list(needs))))
    order = affected_stages(needs, changed)
    assert len(order) == len(set(order))
    for stage, own in needs.items():
        assert (stage in order) == (stage in changed or bool(own & set(order)))
        if stage in order:
            assert all(order.index(n) < order.index(stage) for n in own & set(order))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of toy stages: plan, then a, b and c, then d."""
    stages = {
        name: {
            "cmd": f"{sys.executable} toy.py {' '.join([name, *needs])}",
            "deps": needs,
            "outs": [name],
        }
        for name, needs in NEEDS.items()
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "params").write_text("1 ")
    (tmp_path / "break").write_text("")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=tmp_path, check=True, env=environment())
    return tmp_path


def run_jobs(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "instant_soup.pipeline.jobs", "--jobs", "3"],
        cwd=folder, env=environment(), text=True, capture_output=True,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def times(folder: Path) -> dict[str, tuple[float, float]]:
    """Stage → when it began and ended, of the runs so far."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return {name: (float(start), float(end)) for name, start, end in lines}


def test_stages_run_side_by_side_and_dvc_knows_them_all(project: Path) -> None:
    code, said = run_jobs(project)
    assert code == 0, said
    assert (project / "d").read_text() == "1 plana1 planb1 plancd"
    ran = times(project)
    assert max(ran[n][0] for n in "abc") < min(ran[n][1] for n in "abc")
    assert ran["d"][0] > max(ran[n][1] for n in "abc")
    again = subprocess.run(["dvc", "repro"], cwd=project, env=environment(), text=True,
                           capture_output=True, check=True)  # fmt: skip
    assert "Running stage" not in again.stdout

    # Only what is affected: the output of b again, and d behind it.
    (project / "log").unlink()
    (project / "b").unlink()
    (project / "b").write_text("other")
    code, said = run_jobs(project)
    assert code == 0, said
    assert "2 of 2" in said and " a," not in said
    assert (project / "d").read_text() == "1 plana1 planb1 plancd"


def test_a_failure_is_reported_and_what_needs_it_never_starts(project: Path) -> None:
    (project / "break").write_text("b")
    code, said = run_jobs(project)
    assert code == 1
    assert "error: b: error: b is broken (log: .dvc/tmp/jobs/b.log)" in said
    assert set(times(project)) == {"plan", "a", "c"}  # those beside it end in peace
    (project / "break").write_text("")
    code, said = run_jobs(project)
    assert code == 0, said
    assert "2 of 2" in said and set(times(project)) == {*NEEDS}


def test_an_end_ends_the_stages_too(project: Path) -> None:
    """SIGTERM: as a terminal's Ctrl-C, which reaches the stages by itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "instant_soup.pipeline.jobs", "--jobs", "1"],
        cwd=project, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = project / ".dvc/tmp/jobs/a.log"
    while not (log.exists() and "Running stage" in log.read_text()):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=30) != 0
    time.sleep(5)
    assert not (project / "a").exists() and "a" not in times(project)


def test_an_end_finds_a_stage_that_is_just_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen] = []

    def slow(command: list[str], **how: Any) -> subprocess.Popen:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.5)  # the fork of a large process
        started.append(popen(["sleep", "20"], **how))
        return started[0]

    popen = subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_side_by_side(["a"], {"a": set()}, 1, tmp_path)
    assert [process.returncode for process in started] == [-signal.SIGINT]


def test_a_plan_that_is_refused_says_so_itself(project: Path) -> None:
    (project / "break").write_text("plan")
    code, said = run_jobs(project)
    assert code != 0
    assert "error: plan is broken" in said and "Traceback" not in said
    assert not any((project / name).exists() for name in NEEDS)


@pytest.mark.parametrize(
    ("visible", "jobs", "shares"),
    [
        ("", 2, ["", ""]),
        ("0", 2, ["0", "0"]),
        ("0,1,2,3", 2, ["0,2", "1,3"]),
        ("4,5,6", 4, ["4", "5", "6", "4"]),
    ],
)
def test_jobs_share_the_gpus(
    visible: str, jobs: int, shares: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots = processes.slots_of(jobs)
    assert [slots.get_nowait() for _ in range(jobs)] == shares
