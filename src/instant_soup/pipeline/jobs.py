"""`dvc repro` with several stages at once.

    python -m instant_soup.pipeline.jobs --jobs 2

DVC runs one stage after another. Here every changed stage is its own `dvc repro`, started as soon
as the stages that it depends on are done. So rows run side by side, and beside ISP's rounds. Logs
lie in .dvc/tmp/jobs.
"""

import argparse
import os
import queue
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from instant_soup.errors import UserError
from instant_soup.files import project_root
from instant_soup.pipeline.processes import (
    Processes,
    duration,
    environment,
    last_error,
    run_stage,
    slots_of,
    take_signals,
)

FIRST = "plan"  # writes every stage's settings, so only after it is it known what changed


def affected_stages(needs: dict[str, set[str]], changed: set[str]) -> list[str]:
    """The changed stages and all that depend on them, each after those that it needs.

    Args:
        needs: Stage → the stages that it depends on directly, for all stages.
        changed: The changed stages.

    Returns:
        Stages in an order in which they can run.
    """
    order: list[str] = []
    affected = set(changed)

    def visit(stage: str, seen: set[str]) -> None:
        if stage in seen:
            return
        seen.add(stage)
        for needed in sorted(needs[stage]):
            visit(needed, seen)
        if stage in changed or needs[stage] & affected:
            affected.add(stage)
            order.append(stage)

    seen: set[str] = set()
    for stage in needs:
        visit(stage, seen)
    return order


def changes() -> tuple[dict[str, set[str]], set[str]]:
    """DVC's graph (stage → the stages it depends on) and the stages whose contents changed.

    The first stage, which runs in any case, is none of them.
    """
    from dvc.repo import Repo

    with Repo() as repo:
        graph = repo.index.graph
        needs = {s.addressing: {n.addressing for n in graph.successors(s)} for s in graph}
        return needs, set(repo.status()) - {FIRST}


def repro(
    stage: str, log: Path, slots: queue.Queue[str], own: dict[str, str], processes: Processes
) -> float:
    """Run one stage by DVC, on GPUs of its own where there are several; its seconds."""
    cards = slots.get()
    try:
        started = time.monotonic()
        with open(log, "w") as file:
            process = processes.start(
                # The lock is held for moments only, never while a stage runs.
                [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage],
                env={**own, "CUDA_VISIBLE_DEVICES": cards} if cards else own,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            process.wait()
    finally:
        slots.put(cards)
    if process.returncode:
        raise UserError(f"{stage}: {last_error(log)} (log: {log})")
    return time.monotonic() - started


def run_side_by_side(order: list[str], needs: dict[str, set[str]], jobs: int, logs: Path) -> None:
    """Run stages, at most `jobs` at once; at a failure none is started any more."""
    own, slots = environment(Path.cwd(), jobs), slots_of(jobs)
    waiting = list(order)
    failed: list[str] = []
    running: dict[Future[float], str] = {}
    processes = Processes()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while running or (waiting and not failed):
                unfinished = {*waiting, *running.values()}
                ready = [stage for stage in waiting if not needs[stage] & unfinished]
                for stage in ready[: 0 if failed else jobs - len(running)]:
                    waiting.remove(stage)
                    log = logs / f"{stage}.log"
                    running[pool.submit(repro, stage, log, slots, own, processes)] = stage
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    stage = running.pop(future)
                    try:
                        took = future.result()
                    except UserError as error:
                        failed.append(str(error))
                        continue
                    done = f"{len(order) - len(waiting) - len(running)} of {len(order)}"
                    print(f"{time.strftime('%H:%M:%S')} {done}: {stage}, {duration(took)}")
        finally:
            processes.stop()
    if failed:
        raise UserError("; ".join(failed))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m instant_soup.pipeline.jobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, required=True, help="stages side by side")
    jobs = parser.parse_args().jobs
    if jobs < 1:
        raise UserError(f"--jobs: {jobs} is not allowed; allowed: a whole number from 1")
    take_signals()
    os.chdir(project_root())
    logs = Path(".dvc/tmp/jobs")
    logs.mkdir(parents=True, exist_ok=True)
    if status := subprocess.run([sys.executable, "-m", "dvc", "repro", FIRST]).returncode:
        sys.exit(status)  # it has said why
    needs, changed = changes()
    run_side_by_side(affected_stages(needs, changed), needs, jobs, logs)


if __name__ == "__main__":
    run_stage(main)
