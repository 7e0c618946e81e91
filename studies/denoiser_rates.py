"""How far must denoisers go for the soup to be another mask? ISP over its denoisers' learning rate.

All denoisers of a run have the network's rate times one factor, from a tenth to a thousand. What is
measured in the last round: how like the weak masks, their union adjusted, are to the network's own
magnitude mask (cosine), what share of the own mask the union holds, and the finished network's test
score. Beside it two rows without denoisers (better_soups.py): the same rounds, and the same rounds
with the denoisers' steps added to the budget. docs/method.md says what the two ends must be.
Finished runs are in the CSV file, and the same command goes on from there; what another kind of
processor has run is not mixed in.

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
import better_soups
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
from instant_soup.training.cost import processor
from instant_soup.training.run import Run

RESULTS = ROOT / "reports/studies/denoiser_rates.csv"
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
WITHOUT = {  # rows without denoisers, their factor is 0
    "progressive": "without denoisers",
    "progressive_longer": "without denoisers, as many steps in all",
}
KEY = ("dataset", "sparsity", "seed", "row", "factor", "processor")
MEASURED = ("weak", "soup", "held", "test")
MEANINGS = {
    "weak": "cosine of a weak mask with the own mask, mean over denoisers",
    "soup": "cosine of the adjusted union with the own mask",
    "held": "share of the own mask that the union holds",
    "test": "test score of the finished network",
}
TEXT = (
    "ISP's last round, with denoisers that all have the network's learning rate times a factor: "
    "means over seeds. Independent weak masks of density d would hold 1 − (1 − d)^N of the own "
    "mask, the dotted line on the left. `python studies/denoiser_rates.py --report` writes this "
    "page."
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


def run(params: Params, row: str, factor: float) -> dict[str, float]:
    """One run in the prepared folder here: of ISP, its denoisers' rates at this factor, or of a
    row without denoisers."""
    if row in WITHOUT:
        return {"test": better_soups.run(params, row)["test"]}
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
    """Write reports/studies/denoiser_rates.md and a picture for each task and processor."""
    denoisers = check(params_with()).isp.denoisers
    parts = ["# Denoisers' rates", TEXT]
    parts.append("\n".join(f"* {name}: {meaning}" for name, meaning in MEANINGS.items()))
    for number, (place, own) in enumerate(
        read_runs().groupby(["dataset", "sparsity", "processor"])
    ):
        dataset, sparsity, where = place
        picture = RESULTS.with_name(f"{RESULTS.stem}{number or ''}.png")
        lines = ["| factor | n | " + " | ".join(MEASURED) + " |", "| ---: |" + " ---: |" * 5]
        for (row, factor), runs in own.groupby(["row", "factor"]):
            cells = " | ".join(spread(runs[name]) for name in MEASURED)
            lines.append(f"| {WITHOUT.get(row, f'{factor:g}')} | {len(runs)} | {cells} |")
        parts += [f"## {dataset}, {100 * sparsity:g} % sparse, on {where}", "\n".join(lines)]
        parts.append(f"![Cosine and score over the denoisers' rate]({picture.name})")
        draw(own, 1 - sparsity**denoisers, picture)
    with new_file(RESULTS.with_suffix(".md")) as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n")


def spread(values: pd.Series) -> str:
    """Mean ± sample standard deviation, as far as there are values."""
    if values.isna().all():
        return "–"
    return f"{values.mean():.4f}" + (f" ± {values.std():.4f}" if len(values) > 1 else "")


def draw(runs: pd.DataFrame, floor: float, path: Path) -> None:
    """The masks' likeness on the left, the score on the right, over the factor."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    by_factor = runs[runs["row"] == "isp"].groupby("factor")[list(MEASURED)].agg(["mean", "std"])
    factors = by_factor.index.to_numpy()
    drawn = [("weak", left, "-"), ("soup", left, "-"), ("held", left, "--"), ("test", right, "-")]
    for name, axes, line in drawn:
        mean, std = by_factor[name, "mean"], by_factor[name, "std"].fillna(0.0)
        axes.errorbar(
            factors, mean, yerr=std, marker="o", ms=4, ls=line, capsize=2, label=MEANINGS[name]
        )
    left.axhline(floor, color="#555555", lw=0.8, ls=":")
    for (row, label), line in zip(WITHOUT.items(), (":", "--"), strict=True):
        if (chosen := runs["row"] == row).any():
            right.axhline(
                runs[chosen]["test"].mean(), color="#555555", lw=0.8, ls=line, label=label
            )
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("denoisers' learning rate ÷ the network's")
        axes.legend(fontsize=7, frameon=False, loc=(0.01, 0.12))
    _save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="reviews-sentiment", help="a dataset of docs/data.md")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--factors", nargs="+", type=float, default=list(FACTORS))
    parser.add_argument("--report", action="store_true", help="only write the page")
    options = parser.parse_args()
    rows = [*dict.fromkeys(WITHOUT, 0.0).items(), *(("isp", factor) for factor in options.factors)]
    for seed in [] if options.report else options.seeds:
        changes = {"dataset": options.dataset, "sparsity": options.sparsity, "seed": seed}
        params = check(params_with(**changes))
        plan(params_with(**changes))  # what cannot be is said before any work
        with tempfile.TemporaryDirectory() as folder:
            places = [
                {**changes, "row": row, "factor": factor, "processor": processor()}
                for row, factor in rows
            ]
            todo = [place for place in places if not known(read_runs(), place)]
            if todo:
                prepare(Path(folder), **changes)
            for place in todo:
                with chdir(folder):
                    found = run(params, place["row"], place["factor"])
                add({**place, **found})
                print(f"seed {seed}, {place['row']}, {place['factor']:g}: {found}", flush=True)
    report()


def known(runs: pd.DataFrame, place: dict[str, Any]) -> bool:
    """Whether a run is in the file."""
    return bool((runs[list(KEY)] == [place[key] for key in KEY]).all(axis=1).any())


if __name__ == "__main__":
    main()
