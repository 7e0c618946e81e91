"""How long a whole `dvc repro` takes on this machine, said before it starts.

    python -m instant_soup.reports.forecast [-S model=clip-glyph …]

The ledger knows what a step of the same model and data takes, in FLOPs. This machine's speed comes
from training a small network for a second, unless a training of the same settings ran here before.
(The speed of matrix products alone says little: with AMX they are the smaller part of a step.)
"""

import argparse
import time
from pathlib import Path
from typing import Any

import yaml

from instant_soup.config.fields import defaults_of
from instant_soup.config.sections import Training
from instant_soup.errors import UserError
from instant_soup.files import project_root, read_yaml, yaml_of
from instant_soup.methods.registry import DENSE
from instant_soup.pipeline import outlook
from instant_soup.pipeline.plan import Params, check, plan_with_code, variant
from instant_soup.pipeline.processes import duration, run_stage
from instant_soup.reports.commands import LOCAL
from instant_soup.reports.ledger import read_ledger

# Of that speed (`training_speed`) a run's steps reach this share, by precision: MiniLM on two cores
# of an Intel Xeon with AMX. (In a long training it is 0.45 and 0.7, as first steps are slow.)
SHARE = {"bf16": 0.36, "fp32": 0.6}
LEAST_SHARE = 0.9  # of the cores' time: with less, other work takes the rest


def main() -> None:
    """Command line: print the forecast; nothing where nothing is left to run."""
    parser = argparse.ArgumentParser(
        prog="python -m instant_soup.reports.forecast",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-S", dest="settings", action="append", default=[], metavar="KEY=VALUE", type=_setting,
        help="a key of params.yaml, at its top level, as the run will set it",
    )  # fmt: skip
    given = dict(parser.parse_args().settings)
    try:
        raw = {**read_yaml("params.yaml"), **given}
        text = forecast(check(raw), {n: yaml_of(own) for n, own in plan_with_code(raw).items()})
    except UserError:  # the stage that it concerns says what is wrong
        return
    if text:
        print(text, flush=True)


def _setting(text: str) -> tuple[str, Any]:
    """A key and its value, as `dvc exp run -S` takes them."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: KEY=VALUE, as in model=clip-glyph")
    return key, yaml.safe_load(value)


def forecast(params: Params, texts: dict[str, str]) -> str:
    """The line to print; "" where nothing is left.

    Args:
        params: The run's settings.
        texts: Name of a settings file → its text.
    """
    lock = Path("dvc.lock").read_text() if Path("dvc.lock").exists() else ""
    names = outlook.names_left(texts, lock)
    if not names:
        return ""
    known = of_ledger(params)
    if known is None:
        return (
            f"{outlook.in_words(len(names))} to run. How long this takes is said after the first "
            f"training: no earlier run of {params.top.model} on {params.top.dataset} is in the "
            "ledger."
        )
    rows, flops = known
    left = outlook.left_of(texts, lock, rows)
    step, how = outlook.known_pace(texts), "as in the last run"
    if step is None and left.steps:
        step, how = measured_step(flops, params.training.precision)
    time_left = duration(outlook.START_SECONDS + left.seconds(step or 0.0))
    steps = (
        f"{left.steps:.0f} training steps of {step:.2g} s ({how})" if left.steps else "no training"
    )
    return f"About {time_left} on this machine: {left.in_stages()}, {steps}."


def of_ledger(params: Params) -> tuple[dict[str, int], float] | None:
    """Rows of the splits, and FLOPs of a training step; None where no such run is in the ledger.

    From the newest dense row of the same model, data and preset with the run's settings, or else
    with the preset's own.
    """
    ledger = read_ledger(project_root() / "reports/results.csv")
    top, training, settings = params.top, vars(params.training), variant(params, DENSE)
    dataset = top.dataset + (LOCAL if params.data.path else "")
    same = (ledger["model"] == top.model) & (ledger["dataset"] == dataset)
    same &= (ledger["preset"] == top.preset) & (ledger["method"] == DENSE)
    dense = ledger[same].sort_values("finished")
    for known, ran in (
        (settings, training),
        ("", defaults_of(Training, params.family, top.preset)),
    ):
        if not (dense["variant"] == known).any():
            continue
        row = dense[dense["variant"] == known].iloc[-1]
        batches = row["steps"] / ran["epochs"]  # in an epoch
        given = params.data.train_rows
        train = given if isinstance(given, int) else round(batches * ran["batch_size"])
        rows = {"train": train, "validation": params.data.validation_rows}
        rows["test"] = params.data.test_rows
        return rows, row["flops"] / row["steps"] * training["batch_size"] / ran["batch_size"]
    return None


def measured_step(flops: float, precision: str) -> tuple[float, str]:
    """Seconds that a step of so many FLOPs takes here, about, and how that is known."""
    from instant_soup.training import loop

    precision = loop.resolve_precision(precision)
    speed, share = training_speed(precision)
    how = f"from a second of {precision} training"
    if share < LEAST_SHARE:
        how += f"; longer while other work takes {100 * (1 - share):.0f} % of the cores, as now"
    return flops / (speed * SHARE[precision]), how


def training_speed(precision: str, seconds: float = 1.0) -> tuple[float, float]:
    """FLOP/s of training here, and the share of a core's time that it had.

    Trains two feed-forward blocks of MiniLM's width on 1,024 tokens. On a CPU one thread does so,
    by its own time, and counts for each: the speed of cores that nothing else uses. (Several
    threads wait for each other where other work has a core, and waiting is CPU time, too.)
    """
    import torch
    from torch import nn

    from instant_soup.training import loop

    tokens, width, hidden = 1024, 384, 1536
    where, threads = loop.device(), torch.get_num_threads()
    blocks = [
        nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.LayerNorm(width)
        )
        for _ in range(2)
    ]
    network = nn.Sequential(*blocks).to(where)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    inputs = torch.randn(tokens, width, device=where)

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = network(inputs)
        outputs.float().square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0).item()  # waits for a GPU
        optimizer.step()
        optimizer.zero_grad()

    on_cpu = where.type == "cpu"
    try:
        torch.set_num_threads(1 if on_cpu else threads)
        step()  # the first one is slow
        done, wall, started, used = 0, 0.0, time.perf_counter(), time.process_time()
        while not done or wall < seconds:
            step()
            done, wall = done + 1, time.perf_counter() - started
        share = min(1.0, (time.process_time() - used) / wall) if on_cpu else 1.0
    finally:
        torch.set_num_threads(threads)
    flops = 6.0 * tokens * len(blocks) * 2 * width * hidden * done
    return flops / (wall * share) * (threads if on_cpu else 1), share


if __name__ == "__main__":
    run_stage(main)
