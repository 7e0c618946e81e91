"""What the benchmarks share: a prepared project, timing, the machine, and their records."""

import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from instant_soup.config.sections import Recipe
from instant_soup.data.batches import load_split
from instant_soup.files import CODE, code_version, write_json
from instant_soup.pipeline import run as pipeline_run
from instant_soup.pipeline.plan import Params, check
from instant_soup.pipeline.workspace import ENCODED, START, load_start
from instant_soup.sparsity import scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop, metrics
from instant_soup.training.checkpoints import Record
from instant_soup.training.cost import Cost
from instant_soup.training.run import Run
from instant_soup.training.state import State

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "reports/benchmarks"
WARM_UP = 3  # steps
PREPARE = ("plan", "prepare_data", "prepare_model", "encode_data", "attach_head")
# What is measured whatever params.yaml says: the quick preset of texts.
TEXTS = {
    "model": "minilm", "dataset": "reviews-sentiment", "preset": "quick", "sparsity": 0.7,
    "seed": 0, "methods": ["one_shot"], "exports": [],
}  # fmt: skip


def machine() -> dict[str, Any]:
    """What a figure was taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "torch": torch.__version__}


def record(name: str, rows: list[dict[str, Any]], *, on_gpu: bool = True, **about: Any) -> None:
    """Keep a benchmark's figures in reports/benchmarks/, where report.py finds them.

    `on_gpu=False`: taken on the CPU even where there is a GPU. `about` goes beside what is said of
    every benchmark, or instead of it (`machine=None`: rows that ran who knows where).
    """
    where = machine() | ({} if on_gpu else {"gpu": None})
    taken = {
        "machine": where,
        "code": code_version(ROOT, (*CODE, "benchmarks")),
        "date": datetime.date.today().isoformat(),
    }
    write_json(RECORDS / f"{name}.json", {**taken, **about, "rows": rows})
    for row in rows:
        print(json.dumps(row), flush=True)


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall seconds of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronise()
        started = time.perf_counter()
        function()
        synchronise()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def matmul_peak(precision: str) -> float:
    """FLOP/s of a large square matrix product, the best of several, of two sizes."""
    where = loop.device()
    kind = torch.bfloat16 if precision == "bf16" else torch.float32

    def speed(side: int) -> float:
        one, other = (torch.randn(side, side, device=where).to(kind) for _ in range(2))
        return 2 * side**3 / min(seconds(lambda: one @ other, 5) for _ in range(3))

    return max(speed(side) for side in ((4096, 8192) if where.type == "cuda" else (2048, 4096)))


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Bare(pipeline_run.PipelineRun):
    """A run in the prepared folder here, without curve and checkpoints, and what came out of it."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(*load_start(START), recipe, stored=False)

    def record(self, folder: Any, cost: Cost, last: int) -> Record:
        return Run.record(self, folder, cost, last)

    def first_row(self, network: torch.nn.Module) -> None:
        return None

    def score_on(self, split: str) -> float:
        """The network's score on a split, uncounted."""
        network = self.network(self.state, self.recipe)
        precision = loop.resolve_precision(self.recipe.precision)
        return metrics.score(
            self.recipe.metric, *loop.predict(network, self._split(split), precision)
        )


def recipe_of(params: Params, **changes: Any) -> Recipe:
    """The training settings of some parameters, with changes."""
    return Recipe(**{**vars(params.training), "seed": params.top.seed, **changes})


def step_times(recipe: Recipe, state: State, mask: Mask, steps: int) -> list[float]:
    """Wall seconds of training steps in the prepared folder here; those before do not count."""
    data = load_split(ENCODED / "train.safetensors", loop.device())
    ends = []

    def after_step(*_: Any) -> None:
        synchronise()
        ends.append(time.perf_counter())

    loop.train(
        pipeline_run.build(state, recipe), state, mask, data, recipe, Cost(),
        last=WARM_UP + steps, total=None, label=recipe.precision, after_step=after_step,
    )  # fmt: skip
    return [later - earlier for earlier, later in itertools.pairwise(ends[WARM_UP - 1 :])]


def pruned_start(sparsity: float) -> tuple[State, Mask]:
    """The prepared folder's start, pruned by magnitude, and its mask."""
    state, mask = load_start(START)
    mask = scores.magnitude({name: state.weights[name] for name in mask}, sparsity)
    state.prune(mask)
    return state, mask


def params_with(**changes: Any) -> dict[str, Any]:
    """params.yaml with TEXTS and changes; those of a section are merged into it."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in {**TEXTS, **changes}.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    return params


def prepare(folder: Path, **changes: Any) -> Params:
    """Data, base model and start of TEXTS with changes, in a folder; the parameters.

    Everything that the pipeline has before its first training step, made by its own stages.
    """
    params = params_with(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "stages").symlink_to(ROOT / "stages")  # whose digests the plan writes down
    for stage in PREPARE:
        run_stage(folder, stage)
    return check(params)


def stage_command(stage: str, *arguments: object, cold: bool = False) -> list[str]:
    """What stages/run.py does for a stage; `cold`: in a process of its own (warm_start.py)."""
    launcher = [] if cold or stage == "plan" else ["-m", "instant_soup.pipeline.warm_start"]
    return [sys.executable, *launcher, str(ROOT / f"stages/{stage}.py"), *map(str, arguments)]


def run(command: list[str], folder: Path) -> str:
    """A command's output, run in a prepared folder as DVC would; SystemExit if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[1:])}: {done.stderr[-2000:]}")
    return done.stdout


def run_stage(folder: Path, stage: str, *arguments: object) -> float:
    """Run a stage's script in a prepared folder; its wall seconds."""
    started = time.perf_counter()
    run(stage_command(stage, *arguments), folder)
    return time.perf_counter() - started
