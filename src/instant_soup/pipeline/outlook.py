"""What is left of a whole `dvc repro`, and about how long that takes.

Work is counted in training steps, which the plan's files tell; a step's time is that of the run's
last training. Validations and start-ups count, too: of a small run they are the larger part.
dvc.lock says by which settings file each finished stage ran, so what is left is the
stages whose file is not there. That may be too much, as DVC also takes results from its cache.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from instant_soup.errors import UserError
from instant_soup.files import project_root, read_json, write_json
from instant_soup.methods.rounds import OnTheWay
from instant_soup.pipeline.processes import duration
from instant_soup.pipeline.stage_files import IDLE, PLAN, CalibrateStage, RetrainStage, TicketStage
from instant_soup.training.schedule import Steps

# All other stages depend on those of these.
FIRST = ("data", "pretrain_clip", "pretrain_lm", "base", "encode", "start")
OF_ROUNDS = ("calibrate", "weak", "soup")
OF_ROWS = ("dense", "ticket", "retrain", "evaluate", "tables", "export")
# Between two stages, by MLflow's record of runs of some twenty rows on two busy cores.
STAGE_SECONDS = 2.5  # DVC's own time, and the start of a stage that does something
IDLE_SECONDS = 0.5  # of one that passes by
START_SECONDS = 5.0  # once: what a process that has no imports yet takes (reports/benchmarks.md)
TABLES_SECONDS = 10.0  # the last stage
FORWARD = 1 / 3  # of a training step, which goes backwards, too
LEAST_STEPS = 5  # of a training that tells a step's time: its first steps are slow
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as quick, where it is built
IN_LOCK = re.compile(rf"path: {PLAN}/(\w+)\.yaml\s+hash: md5\s+md5: (\w+)")


@dataclass(frozen=True)
class Left:
    """What is left of a run: training steps, stages, those that pass by, and the steps of all."""

    steps: float
    stages: int
    idle: int
    of_steps: float

    def seconds(self, step_seconds: float) -> float:
        """About how long it takes where a step takes `step_seconds`."""
        stages = self.stages * STAGE_SECONDS + self.idle * IDLE_SECONDS + TABLES_SECONDS
        return self.steps * step_seconds + stages

    def in_stages(self) -> str:
        """How many stages are left, in words."""
        return in_words(self.stages)


def in_words(stages: int) -> str:
    """A number of stages."""
    return "1 stage" if stages == 1 else f"{stages} stages"


def md5(text: str) -> str:
    """A settings file's digest, as dvc.lock has it."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def place_of(name: str) -> tuple[int, int, int]:
    """Where a settings file stands in the plan: behind those of the stages that it depends on."""
    if name in FIRST:
        return 0, FIRST.index(name), 0
    kind, _, rest = name.partition("_")
    if kind in OF_ROUNDS:
        return 1, int(rest.rpartition("_")[2]), OF_ROUNDS.index(kind)
    return 2, OF_ROWS.index(kind), 0


def row_of(name: str) -> str:
    """The row that a settings file belongs to; "" of those that all rows begin with."""
    kind, _, rest = name.partition("_")
    if name in FIRST:
        return ""
    return "isp" if kind in OF_ROUNDS else rest or name


def names_left(texts: dict[str, str], lock: str) -> list[str]:
    """The settings files whose stages have still to run.

    Args:
        texts: Name of a settings file → its text.
        lock: The text of dvc.lock; "" where there is none.

    Returns:
        Names in the plan's order: what the lock does not have as it is, and what follows such a one
        in its row. Stages that the run does not need are left out.
    """
    done = set(IN_LOCK.findall(lock))
    changed: set[str] = set()
    left = []
    for name in sorted(texts, key=place_of):
        if (name, md5(texts[name])) in done and not changed & {"", row_of(name)}:
            continue
        if yaml.load(texts[name], LOADER) != IDLE:
            changed.add(row_of(name))
            left.append(name)
    return left


def steps_of_stage(name: str, plan: dict[str, Any], rows: dict[str, int]) -> float:
    """About how many training steps a stage takes; passes without a gradient are a third of one.

    Args:
        name: The stage's settings file.
        plan: Name of a settings file → its contents.
        rows: How many rows `train`, `validation` and `test` have.
    """
    recipe, own = plan["dense"]["recipe"], plan[name]
    kind, _, rest = name.partition("_")
    steps = Steps.of(recipe["epochs"], rows["train"], recipe["batch_size"])
    total = steps.total

    def passes(split: str) -> float:
        return FORWARD * rows.get(split, 0) / recipe["batch_size"]

    def training(taken: float, pruned: int = 0) -> float:
        """Steps with the validations among them: at even distances, before and after each prune."""
        return taken + passes("validation") * (recipe["evaluations"] * taken / total + 2 * pruned)

    def ends(round_index: int) -> list[int]:
        stage = CalibrateStage.of(plan[f"calibrate_{round_index}"])
        return [0, *stage.schedule.ends(stage.rounds, total, steps.steps_per_epoch)]

    if kind == "pretrain":
        return own["steps"] * own["batch_size"] / recipe["batch_size"]
    if kind == "dense":
        return training(total)
    if kind == "calibrate":
        return training(ends(int(rest))[int(rest) + 1] - ends(int(rest))[int(rest)], pruned=1)
    if kind == "weak":
        return own["isp"]["denoisers"] * own["isp"]["look_ahead"]
    if kind == "ticket":
        ticket = TicketStage.of(own)
        method = ticket.build()
        prunes = len(method.sparsities(ticket.sparsity)) if isinstance(method, OnTheWay) else 0
        return training(total * method.more_trainings(ticket.sparsity), prunes)
    if kind == "retrain":
        rounds = RetrainStage.of(own).isp_rounds
        return training(total - (ends(rounds - 1)[rounds] if rest == "isp" else 0))
    return passes("test") if kind == "evaluate" else 0.0


def left_of(texts: dict[str, str], lock: str, rows: dict[str, int]) -> Left:
    """What is left of the run of a plan (see `names_left`, `steps_of_stage`)."""
    plan = {name: yaml.load(text, LOADER) for name, text in texts.items()}
    steps = {n: steps_of_stage(n, plan, rows) for n, own in plan.items() if own != IDLE}
    names, done = names_left(texts, lock), set(IN_LOCK.findall(lock))
    idle = [n for n, own in plan.items() if own == IDLE and (n, md5(texts[n])) not in done]
    return Left(sum(steps[name] for name in names), len(names), len(idle), sum(steps.values()))


# In a stage


def tell() -> None:
    """Print what is left of the run that this stage is part of; nothing outside DVC."""
    if "DVC_STAGE" not in os.environ:
        return
    texts = {path.stem: path.read_text() for path in PLAN.glob("*.yaml")}
    lock = Path("dvc.lock").read_text() if Path("dvc.lock").exists() else ""
    left = left_of(texts, lock, read_json("data/encoded/info.json")["rows"])
    said = f"left of the run: {left.steps:.0f} of {left.of_steps:.0f} steps, {left.in_stages()}"
    pace = known_pace(texts)
    print(f"{said}, about {duration(left.seconds(pace))}" if pace else said, flush=True)


def note_pace(steps: int, seconds: float) -> None:
    """Keep the time of a step, in seconds, of a training of this run."""
    if "DVC_STAGE" in os.environ and steps >= LEAST_STEPS:
        texts = {name: (PLAN / f"{name}.yaml").read_text() for name in OF_PACE}
        write_json(_pace_file(), {"of": _key(texts), "step_seconds": seconds / steps})


def known_pace(texts: dict[str, str]) -> float | None:
    """Seconds that a step took in the last training of the same model and data, if known."""
    try:
        known = read_json(_pace_file())
        return float(known["step_seconds"]) if known["of"] == _key(texts) else None
    except (UserError, KeyError, TypeError, ValueError):
        return None


OF_PACE = ("data", "base", "encode", "dense")  # the settings files that a step's time depends on


def _pace_file() -> Path:
    return project_root() / ".dvc/tmp/instant-soup/pace.json"


def _key(texts: dict[str, str]) -> str:
    return hashlib.sha256("\n".join(texts[name] for name in OF_PACE).encode()).hexdigest()
