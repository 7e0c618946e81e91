"""How far must denoisers go for the soup to be another mask? ISP over its denoisers' learning rate.

All denoisers of a run have the network's rate times one factor, from a tenth to a thousand. What is
measured in the last round: how like the weak masks, their union adjusted, are to the network's own
magnitude mask (cosine), what share of the own mask the union holds, and the finished network's test
score. docs/method.md says what the two ends must be. Finished runs are in the CSV file, and the
same command goes on from there.

    python studies/denoiser_rates.py            # the packaged texts, 70 %, three seeds
    python studies/denoiser_rates.py --report   # only the page, reports/studies/denoiser_rates.md
"""

import argparse
import csv
import sys
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import pandas as pd
from common import ROOT, Bare, params_with, prepare
from matplotlib.figure import Figure

from instant_soup.files import new_file
from instant_soup.methods.isp import ISP
from instant_soup.pipeline.plan import Params, check, plan
from instant_soup.pipeline.stage_files import TrainStage
from instant_soup.reports.figures import _save
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training.run import Run

RESULTS = ROOT / "reports/studies/denoiser_rates.csv"
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
KEY = ("dataset", "sparsity", "seed", "factor")
MEASURED = ("weak", "soup", "held", "test")
MEANINGS = {
    "weak": "cosine of a weak mask with the own mask, mean over denoisers",
    "soup": "cosine of the adjusted union with the own mask",
    "held": "share of the own mask that the union holds",
    "test": "test score of the finished network",
}
TEXT = (
    "ISP's last round, with denoisers that all have the network's learning rate times a factor: "
    "means over {n} seeds, {place}. Independent weak masks of density d would hold 1 − (1 − d)^N "
    "= {floor:.2f} of the own mask. `python studies/denoiser_rates.py --report` writes this page."
)


@dataclass(frozen=True, kw_only=True)
class Watched(ISP):
    """ISP that notes how like the last round's masks are to the network's own."""

    noted: dict[str, float]

    def find_mask(self, run: Run, i: int, sparsity: float) -> Mask:
        """Algorithm 2, and what it made of the weak masks."""
        weak = [self.weak_mask(run, i, n, sparsity) for n in range(self.denoisers)]
        own = self.own(run.state, run.mask, sparsity)
        soup = self.soup(run.state, run.mask, weak, sparsity)
        union = {name: sum(mask[name] for mask in weak) > 0 for name in own}
        kept = sum(int((own[name] & union[name]).sum()) for name in own)
        self.noted.update(
            weak=sum(masks.cosine_similarity(mask, own) for mask in weak) / len(weak),
            soup=masks.cosine_similarity(soup, own),
            held=kept / masks.count(own)[0],
        )
        return soup


def run(params: Params, factor: float) -> dict[str, float]:
    """One run of ISP in the prepared folder here, its denoisers' rates at this factor."""
    recipe = TrainStage.read("models/plan/dense.yaml").recipe
    settings = {**vars(params.isp), "learning_rate_range": [factor, factor]}
    isp, own = Watched(**settings, noted={}), Bare(recipe)
    isp.run(own, params.top.sparsity)
    return {**isp.noted, "test": own.score_on("test")}


def read_runs() -> pd.DataFrame:
    """The finished runs, one a line."""
    if not RESULTS.exists():
        return pd.DataFrame(columns=[*KEY, *MEASURED])
    return pd.read_csv(RESULTS)


def add(row: dict[str, Any]) -> None:
    """Add a finished run to the file."""
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, [*KEY, *MEASURED], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def report() -> None:
    """Write reports/studies/denoiser_rates.md and .png."""
    runs = read_runs()
    params = check(params_with())
    for (dataset, sparsity), own in runs.groupby(["dataset", "sparsity"]):
        by_factor = own.groupby("factor")[list(MEASURED)].agg(["mean", "std"])
        place = f"{dataset}, {100 * sparsity:g} % sparse"
        floor = 1 - sparsity**params.isp.denoisers
        lines = ["| factor | " + " | ".join(MEASURED) + " |", "| ---: |" + " ---: |" * 4]
        for factor, line in by_factor.iterrows():
            cells = (f"{line[name, 'mean']:.4f} ± {line[name, 'std']:.4f}" for name in MEASURED)
            lines.append(f"| {factor:g} | {' | '.join(cells)} |")
        parts = [
            "# Denoisers' rates",
            TEXT.format(n=own["seed"].nunique(), place=place, floor=floor),
            "\n".join(lines),
            "\n".join(f"* {name}: {meaning}" for name, meaning in MEANINGS.items()),
            "![Cosine and score over the denoisers' rate](denoiser_rates.png)",
        ]
        with new_file(RESULTS.with_suffix(".md")) as unfinished:
            unfinished.write_text("\n\n".join(parts) + "\n")
        draw(by_factor, floor)


def draw(by_factor: pd.DataFrame, floor: float) -> None:
    """The masks' likeness on the left, the score on the right, over the factor."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    factors = by_factor.index.to_numpy()
    for name, axes in [("weak", left), ("soup", left), ("held", left), ("test", right)]:
        mean, std = by_factor[name, "mean"], by_factor[name, "std"].fillna(0.0)
        axes.errorbar(factors, mean, yerr=std, marker="o", ms=4, capsize=2, label=MEANINGS[name])
    left.axhline(floor, color="#555555", lw=0.8, ls=":", label="held by independent masks")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("denoisers' learning rate ÷ the network's")
        axes.legend(fontsize=7, frameon=False)
    _save(figure, RESULTS.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="reviews-sentiment", help="a dataset of docs/data.md")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--factors", nargs="+", type=float, default=list(FACTORS))
    parser.add_argument("--report", action="store_true", help="only write the page")
    options = parser.parse_args()
    for seed in [] if options.report else options.seeds:
        changes = {"dataset": options.dataset, "sparsity": options.sparsity, "seed": seed}
        params = check(params_with(**changes))
        plan(params_with(**changes))  # what cannot be is said before any work
        with tempfile.TemporaryDirectory() as folder:
            todo = [f for f in options.factors if not known(read_runs(), {**changes, "factor": f})]
            if todo:
                prepare(Path(folder), **changes)
            for factor in todo:
                with chdir(folder):
                    found = run(params, factor)
                add({**changes, "factor": factor, **found})
                print(f"seed {seed}, factor {factor:g}: {found}", flush=True)
    report()


def known(runs: pd.DataFrame, row: dict[str, Any]) -> bool:
    """Whether a run is in the file."""
    return bool((runs[list(KEY)] == [row[key] for key in KEY]).all(axis=1).any())


if __name__ == "__main__":
    main()
