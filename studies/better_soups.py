"""Is there a better soup? ISP with other ways to cook the same weak networks, at equal cost.

Every variant takes ISP's very steps: the same rounds, denoisers, look-ahead and budget; they differ
in what is made of a round's denoisers. Four are controls: `progressive` has no denoisers and so
costs less, `progressive_longer` trains for their steps instead, and both also prune by the scores
that do best with denoisers. `distilled` costs a dense run more, which is counted. Finished runs are
in the CSV file, and the same command goes on from there.

    python studies/better_soups.py --task reviews-sentiment mnist-sample cifar10=../cifar10
    python studies/better_soups.py --report   # only the page, reports/studies/better_soups.md

A task NAME=FOLDER is a dataset of docs/data.md in a local copy. Image tasks need a pre-trained
model: --image-model FOLDER, by default that of a pipeline run (make repro FAMILY=clip). The variant
is chosen by its validation scores over all runs; its test scores are what is reported.
"""

import argparse
import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import pandas as pd
import torch
from common import ROOT, Bare, params_with, prepare
from scipy import stats
from torch.nn import functional

from instant_soup.config.fields import settings_of
from instant_soup.config.sections import Recipe
from instant_soup.data.batches import Images, Texts
from instant_soup.errors import UserError
from instant_soup.files import new_file, sha256
from instant_soup.methods.isp import ISP
from instant_soup.methods.isp_plus import IspPlus
from instant_soup.methods.progressive import Progressive
from instant_soup.methods.rounds import OnTheWay
from instant_soup.models.clip import CONFIG, WEIGHTS
from instant_soup.pipeline.plan import Params, check, plan
from instant_soup.pipeline.stage_files import TrainStage
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Cut, Mask
from instant_soup.training import loop
from instant_soup.training.run import Run
from instant_soup.training.state import State, Weights

RESULTS = ROOT / "reports/studies/better_soups.csv"
KEY = ("task", "sparsity", "seed", "variant", "settings")
COLUMNS = (*KEY, "validation", "test", "flops", "overlap_own", "overlap_one_shot")
AHEAD = 3.0  # `extrapolated`: so many times as far as the look-ahead went
SHARE = 0.5  # `distilled`: of the dense network's probabilities in the targets
DIVERSE = {"learning_rate_range": [0.1, 10.0], "weight_decay_range": [0.0, 0.3], "subset": 0.1}

# What a variant makes of the network's prunable weights, its denoisers and their weak masks: a
# score for each weight.
Cook = Callable[[Weights, list[State], list[Mask]], Weights]


def weighted_vote(weights: Weights, denoisers: list[State], weak: list[Mask]) -> Weights:
    """Each mask's votes weigh as much as its denoiser's weight is large."""
    sizes = {
        n: torch.stack([d.weights[n].abs() * m[n] for d, m in zip(denoisers, weak, strict=True)])
        for n in weights
    }
    # What no mask keeps follows, by the network's own magnitude.
    votes = {n: s.sum(0) for n, s in sizes.items()}
    least = 1e-6 * min(float(w.abs().max()) for w in weights.values())
    return {n: v + least * weights[n].abs() for n, v in votes.items()}


def mean_magnitude(weights: Weights, denoisers: list[State], weak: list[Mask]) -> Weights:
    """|w| averaged over the denoisers: by how much they agree, not only how many."""
    return {n: total(d.weights[n].abs() for d in denoisers) for n in weights}


def extrapolated(weights: Weights, denoisers: list[State], weak: list[Mask]) -> Weights:
    """|w| as it will be when training goes on the way that the denoisers went."""
    found = {}
    for name, w in weights.items():
        mean = total(d.weights[name] for d in denoisers) / len(denoisers)
        found[name] = (w + AHEAD * (mean - w)).abs()
    return found


def fisher(weights: Weights, denoisers: list[State], weak: list[Mask]) -> Weights:
    """w² times the mean squared gradient, which AdamW has measured while the denoisers trained."""
    moments = {n: total(d.second_moments[n] for d in denoisers) for n in weights}
    return scores.fisher_scores(weights, moments)


def saliency(weights: Weights, denoisers: list[State], weak: list[Mask]) -> Weights:
    """|w · g| averaged over the denoisers, g the mean gradient that their AdamW holds."""
    return {
        n: torch.stack([(d.weights[n] * d.first_moments[n]).abs() for d in denoisers]).sum(0)
        for n in weights
    }


def total(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors of one shape."""
    return reduce(torch.add, tensors)


@dataclass(frozen=True, kw_only=True)
class Cooked(ISP):
    """ISP with another way to make a mask of a round's denoisers; without one, by their union."""

    cook: Cook | None = None

    def find_mask(self, run: Run, i: int, sparsity: float) -> Mask:
        """Algorithm 2 with this cook."""
        denoisers = [self.denoiser(run, i, n) for n in range(self.denoisers)]
        weak = [scores.best(self.worth(d, run.mask), sparsity) for d in denoisers]
        self.move(run, denoisers)
        if self.cook is None:
            return self.soup(run.state, run.mask, weak, sparsity)
        return scores.best(self.cook(run.weights, denoisers, weak), sparsity)

    def denoiser(self, run: Run, i: int, n: int) -> State:
        """The network as denoiser n leaves it."""
        return run.look_ahead(self.protocol(run, i, n), self.look_ahead, f"{i}/{n}")

    def move(self, run: Run, denoisers: list[State]) -> None:
        """The network stays where it is."""


@dataclass(frozen=True, kw_only=True)
class Souped(Cooked):
    """The weights become the denoisers' mean, too."""

    def move(self, run: Run, denoisers: list[State]) -> None:
        for name, w in run.state.weights.items():
            if w.is_floating_point():
                w.copy_(torch.stack([d.weights[name] for d in denoisers]).mean(0))


@dataclass(frozen=True, kw_only=True)
class Relay(Cooked):
    """Each denoiser goes on from the last one, and the network from the final one."""

    def denoiser(self, run: Run, i: int, n: int) -> State:
        ahead = super().denoiser(run, i, n)
        run.state.weights = ahead.weights
        return ahead


# Variant → its method (those that prune without denoisers have ISP's rounds), and what it changes
# of ISP's settings.
VARIANTS: dict[str, tuple[type[OnTheWay], dict[str, Any]]] = {
    "progressive": (Progressive, {}),
    "progressive_longer": (Progressive, {}),  # and its run takes the denoisers' steps
    "progressive_fisher": (IspPlus, {}),  # by the network's own AdamW
    "progressive_longer_fisher": (IspPlus, {}),
    "union": (ISP, {}),  # the paper
    "vote": (ISP, {"combine": "vote"}),  # the number of masks that keep a weight, then magnitude
    "weighted_vote": (Cooked, {"cook": weighted_vote}),
    "mean_magnitude": (Cooked, {"cook": mean_magnitude}),
    "extrapolated": (Cooked, {"cook": extrapolated}),
    "saliency": (Cooked, {"cook": saliency}),
    "fisher": (Cooked, {"cook": fisher}),
    "farther": (ISP, {}),  # one denoiser, which takes the steps of all
    "diverse": (Cooked, {"cook": mean_magnitude, **DIVERSE}),  # protocols far apart
    "souped_weights": (Souped, {}),
    "souped_both": (Souped, {"cook": mean_magnitude}),
    "souped_fisher": (Souped, {"cook": fisher}),
    "union_fisher": (ISP, {"score": "fisher"}),  # everywhere in place of magnitudes
    "relay": (Relay, {}),
    "distilled": (ISP, {}),  # and the targets are in part the dense network's
}


class Soup(Bare):
    """A run that remembers the network's own magnitude mask at the last pruning."""

    def prune(self, found: Mask | Cut) -> None:
        mask = found.mask if isinstance(found, Cut) else found
        sizes = scores.magnitude_scores(self.weights)
        self.own = masks.keep_largest(sizes, masks.count(mask)[0])
        super().prune(found)


class Distilled(Soup):
    """Its targets are in part those of a dense network, whose cost is added; not its denoisers'."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        teacher = Bare(recipe)
        teacher.train(teacher.total, "teacher")
        self.cost.add(teacher.cost)
        data = self._split("train")
        assert isinstance(data, Texts | Images)
        network = teacher.network(teacher.state, recipe).eval()
        with torch.inference_mode():
            parts = [
                loop.logits_of(network, data.rows(index)).float().softmax(-1)
                for index in torch.arange(len(data)).split(256)
            ]
        soft = torch.cat(parts).clone()
        hard = functional.one_hot(data.labels.long(), soft.shape[1])
        self.soft = replace(data, labels=SHARE * soft + (1 - SHARE) * hard)

    def take(self, *given: Any, **how: Any) -> State:
        if how.get("rows") is not None:
            return super().take(*given, **how)
        targets = patch.dict(self.splits, train=self.soft)
        with targets, patch.object(loop, "loss_of", soft_loss):
            return super().take(*given, **how)


def soft_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of probabilities."""
    return functional.cross_entropy(logits.float(), targets)


def run(params: Params, variant: str) -> dict[str, Any]:
    """One ISP run with a variant's soup, here; its scores, FLOPs, and how like its mask is."""
    recipe = TrainStage.read("models/plan/dense.yaml").recipe
    own = Distilled(recipe) if variant == "distilled" else Soup(recipe)
    paper = {"combine": "union", "own_mask": False, "adjust": "every_round", "score": "magnitude"}
    isp, sparsity = ISP(**{**vars(params.isp), **paper}), params.top.sparsity
    kind, changes = VARIANTS[variant]
    known = isp.some(*(settings_of(kind).keys() & settings_of(ISP).keys()))
    if variant == "farther":
        changes = {"denoisers": 1, "look_ahead": isp.denoisers * isp.look_ahead}
    if variant.startswith("progressive_longer"):
        beside = len(isp.sparsities(sparsity)) * isp.denoisers * isp.look_ahead
        longer = (own.total + beside) / own.total
        own.total = round(longer * own.total)
        changes = {"calibration": longer * isp.calibration}
    one_shot = scores.magnitude(own.weights, sparsity)
    kind(**{**known, **changes}).run(own, sparsity)
    return {
        **{split: own.score_on(split) for split in ("validation", "test")},
        "flops": own.cost.flops,
        "overlap_own": masks.cosine_similarity(own.mask, own.own),
        "overlap_one_shot": masks.cosine_similarity(own.mask, one_shot),
    }


def read_runs() -> pd.DataFrame:
    """The finished runs; texts, as they are in the file."""
    if not RESULTS.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.read_csv(RESULTS, dtype=str)


def add(row: dict[str, Any]) -> None:
    """Add a finished run to the file."""
    new = not RESULTS.exists()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def changes_of(task: str, image_model: Path) -> dict[str, Any]:
    """What a task changes in params.yaml: dataset, model, rows."""
    name, _, folder = task.partition("=")
    images = name in ("mnist-sample", "cifar10")
    if images and not (image_model / CONFIG).exists():
        raise UserError(
            f"--image-model: {image_model}: no {CONFIG} there; allowed: a pre-trained model's "
            "folder, as make repro FAMILY=clip leaves in models/pretrained"
        )
    data: dict[str, Any] = {"train_rows": 8000, "validation_rows": 1000, "test_rows": 2000}
    if folder:
        data["path"] = str(Path(folder).resolve())
    if name == "mnist-sample":
        data["train_rows"] = "all"
    model = f"local:{image_model.resolve()}" if images else "minilm"
    return {"dataset": name, "model": model, "data": data}


# What else of params.yaml was counted when the first runs were recorded, as it stood there: their
# digests stay theirs.
BESIDE: dict[str, Any] = {
    **{key: [] for key in ("lottery", "controls", "soups", "soup_members", "exports")},
    **{"baselines": ["one_shot"], "export_dtype": "fp32", "weak_seeds": [0, 1, 2]},
    "rounds": [
        {"id": 0, "previous": "start", "start": "models/start"},
        *(
            {"id": i + 1, "previous": f"round_{i}", "start": f"models/isp/round_{i}"}
            for i in range(4)
        ),
    ],
    "criteria": {"batches": 4, "m": 4, "min_density": 0.05},
    "imp": {
        **{"compression_rate": 0.2, "rate_of": "total", "rewind": 0.05},
        "coefficients": [0.1, 0.3, 0.5, 0.7, 0.9],
    },
    "model_soup": {
        **{"networks": 3, "denoisers": 3, "steps": 20, "subset": 0.1},
        **{"learning_rate_range": [0.5, 2.0], "weight_decay_range": [0.0, 0.1]},
        **{"sparsity_range": [0.1, 0.5], "coefficients": [0.1, 0.3, 0.5, 0.7, 0.9]},
    },
}
BESIDE_OF_FAMILY: dict[str, dict[str, Any]] = {
    "bert": {"early_bird": {"every": 0.1, "threshold": 0.02, "window": 3}, "pretraining": {}},
    "clip": {
        "early_bird": {"every": 1.0, "threshold": 0.02, "window": 3},
        "pretraining": {
            **{"objective": "contrastive", "steps": 1000, "batch_size": 128, "precision": "auto"},
            **{"learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.1, "seed": 0},
        },
    },
}
# Settings that came later count where they are not the default.
LATER = (
    *("teacher", "temperature", "hardness"),
    *("retrain", "retrain_rate", "lora_rank", "lora_alpha"),
    *("schedule", "prunes", "first_cut", "begin", "end", "cycles", "lowest_rate"),
    *("draws", "validation_share"),
)


def digest_of(params: Params) -> str:
    """A name for all settings that a run depends on beside its own columns.

    A model's folder counts by its weights, and where a task's copy lies does not count.
    """
    top = params.top
    rest: dict[str, Any] = {
        **{"dataset": top.dataset, "model": top.model, "preset": top.preset},
        "family": params.family,
        **BESIDE,
        **BESIDE_OF_FAMILY[params.family],
    }
    sections = {"data": params.data, "training": params.training, "isp": params.isp}
    for section, own in sections.items():
        fields = settings_of(type(own))
        rest[section] = {
            name: value
            for name, value in vars(own).items()
            if value is not None and not (name in LATER and value == fields[name].default)
        }
    rest["data"].pop("path", None)
    if params.isp.score == "magnitude":
        del rest["isp"]["score"]
    if top.model.startswith("local:"):
        rest["model"] = sha256(Path(top.model.removeprefix("local:")) / WEIGHTS)
    text = json.dumps([rest, AHEAD, SHARE, DIVERSE], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def cells_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Each variant's run beside the union's of the same task, sparsity and seed, in points."""
    cell = ["task", "sparsity", "seed"]
    numbers = ["validation", "test", "flops", "overlap_own"]
    last = runs.drop_duplicates([*cell, "variant"], keep="last")
    last = last.assign(**{name: last[name].astype(float) for name in numbers})
    union = last[last["variant"] == "union"]
    both = last.merge(union, on=[*cell, "settings"], suffixes=("", "_union"))
    for name in ("validation", "test"):
        both[f"{name}_gain"] = 100 * (both[name] - both[f"{name}_union"])
    both["cost"] = both["flops"] / both["flops_union"]
    return both


def whole(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the variants that have a run beside each of the union's."""
    number = cells.groupby("variant")["seed"].transform("size")
    return cells[number == (cells["variant"] == "union").sum()]


def shared(cells: pd.DataFrame) -> pd.DataFrame:
    """The runs of the tasks, sparsities and seeds that every variant has."""
    variants = cells.groupby(["task", "sparsity", "seed"])["variant"].transform("nunique")
    return cells[variants == cells["variant"].nunique()]


def summary(cells: pd.DataFrame) -> pd.DataFrame:
    """Per variant: cost, gains over the union, their spread over runs, and how sure they are."""
    rows = []
    for variant, own in cells.groupby("variant", sort=False):
        gains = own["test_gain"]
        rows.append({
            "variant": variant, "n": len(own), "cost": own["cost"].mean(),
            "validation": own["validation_gain"].mean(skipna=False),  # diverged: never chosen
            "test": gains.mean(skipna=False), "spread": gains.std(), "better": (gains > 0).sum(),
            "p": stats.wilcoxon(gains).pvalue if gains.any() else 1.0,
            "overlap_own": own["overlap_own"].mean(),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("validation", ascending=False)


def chosen_of(table: pd.DataFrame) -> str:
    """The variant with the largest mean validation gain that costs at most 5 % more."""
    rivals = table[(table["cost"] < 1.05) & ~table["variant"].isin(("union", "progressive"))]
    return rivals.loc[rivals["validation"].idxmax(), "variant"] if len(rivals) else ""


def report() -> None:
    """Write reports/studies/better_soups.md and .png."""
    cells = cells_of(read_runs())
    table, finalists, first = summary(whole(cells)), whole(cells), shared(cells)
    tasks = ", ".join(sorted(set(cells["task"])))
    lines = [
        "# Other soups at equal cost",
        "Gains over ISP's own soup (union) in points of the metric, means over n runs (task, "
        f"sparsity, seed) of {tasks}, at {', '.join(sorted(set(cells['sparsity'])))} sparsity. "
        "± is the sample standard deviation over runs, better the number of runs with a test gain, "
        "p of Wilcoxon's signed-rank test of the test gains, not corrected for the number of "
        "variants. Cost: FLOPs ÷ the union's. Cosine: of the final mask with the network's own "
        f"magnitude mask. Chosen on validation, among those that cost no more: "
        f"**{chosen_of(table)}**. `python studies/better_soups.py --report` writes this page.",
        markdown(table),
        "Test scores, mean ± sample standard deviation over seeds:",
        scores_table(finalists, list(table["variant"])),
        "![Gain over the union](better_soups.png)",
        "## First look",
        "All variants on the runs that all of them have: "
        + ", ".join(sorted({f"{c.task} {c.sparsity} seed {c.seed}" for c in first.itertuples()}))
        + ".",
        markdown(summary(first)) if len(first) else "None.",
    ]
    plot(finalists, list(table["variant"]), RESULTS.with_suffix(".png"))
    with new_file(RESULTS.with_suffix(".md")) as unfinished:
        unfinished.write_text("\n\n".join(lines) + "\n")
    print(lines[2])


def markdown(table: pd.DataFrame) -> str:
    """A summary as a table."""
    lines = [
        "| variant | cost | validation gain | test gain | better | p | cosine |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in table.itertuples():
        gains = f"{r.validation:+.2f} | {r.test:+.2f} ± {r.spread:.2f} | {r.better} of {r.n}"
        lines.append(f"| {r.variant} | {r.cost:.2f} | {gains} | {r.p:.2g} | {r.overlap_own:.4f} |")
    return "\n".join(lines)


def scores_table(cells: pd.DataFrame, variants: list[str]) -> str:
    """Test scores × 100, mean ± sample standard deviation over seeds, by task and sparsity."""
    cells = cells.assign(column=cells["task"] + " " + cells["sparsity"])
    columns = sorted(set(cells["column"]))
    lines = ["| variant | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for variant in variants:
        own = 100 * cells[cells["variant"] == variant].pivot(columns="column", values="test")
        shown = [f"{own[column].mean():.2f} ± {own[column].std():.2f}" for column in columns]
        lines.append(f"| {variant} | {' | '.join(shown)} |")
    return "\n".join(lines)


def plot(cells: pd.DataFrame, variants: list[str], path: Path) -> None:
    """Each variant's test gain over the union, mean and spread over seeds; a panel a sparsity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [variant for variant in variants if variant != "union"]
    sparsities, tasks = sorted(set(cells["sparsity"])), sorted(set(cells["task"]))
    colours = dict(zip(tasks, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False))
    figure, axes = pyplot.subplots(
        1, len(sparsities), figsize=(5 * len(sparsities), 4.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, sparsity in zip(axes[0], sparsities, strict=True):
        for x, variant in enumerate(shown):
            own = cells[(cells["variant"] == variant) & (cells["sparsity"] == sparsity)]
            for i, (task, gains) in enumerate(own.groupby("task")["test_gain"]):
                panel.errorbar(
                    x + 0.2 * (i - (len(tasks) - 1) / 2), gains.mean(), yerr=gains.std(),
                    fmt="o", ms=5, capsize=2, color=colours[task], label=task if x == 0 else None,
                )  # fmt: skip
        panel.axhline(0, color="#888888", lw=0.8)
        cost = cells[cells["sparsity"] == sparsity].groupby("variant")["cost"].mean()
        names = [f"{variant.replace('_', ' ')}\n{cost[variant]:.2f}×" for variant in shown]
        panel.set_xticks(range(len(shown)), names, fontsize=8, rotation=40, ha="right")
        panel.set_title(f"{100 * float(sparsity):g} % sparse", fontsize=10)
        panel.grid(axis="y", color="#E5E5E5", lw=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("test gain over ISP's union (points)")
    if shown:
        axes[0][0].legend(fontsize=8, frameon=False)
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png", metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", default=[], help="NAME or NAME=FOLDER")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.7, 0.9])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--image-model", type=Path, default=ROOT / "models/pretrained")
    parser.add_argument("--look-ahead", type=int, default=10, help="C (default 10, the preset's)")
    parser.add_argument("--report", action="store_true", help="only write the page")
    options = parser.parse_args()
    tasks = {task: changes_of(task, options.image_model) for task in options.task}
    for changes in tasks.values():
        changes["isp"] = {"look_ahead": options.look_ahead}
        for sparsity in options.sparsities:  # what cannot be is said before hours of work
            plan(params_with(**{**changes, "sparsity": sparsity}))
    for seed in options.seeds:
        for task, changes in tasks.items():
            with tempfile.TemporaryDirectory() as folder:
                runs_of(task, changes, seed, options, Path(folder))
    report()


def runs_of(task: str, changes: dict, seed: int, options: argparse.Namespace, folder: Path) -> None:
    """All runs of a task and a seed that are not in the file, in a prepared folder."""
    name, prepared = task.partition("=")[0], False
    for sparsity in options.sparsities:
        params = check(params_with(**{**changes, "sparsity": sparsity, "seed": seed}))
        for variant in options.variants:
            where = dict(zip(KEY, (name, sparsity, seed, variant, digest_of(params)), strict=True))
            known = read_runs()[list(KEY)].to_dict("records")
            if {key: str(value) for key, value in where.items()} in known:
                continue
            if not prepared:
                prepare(folder, seed=seed, **changes)
                prepared = True
            with chdir(folder):
                try:
                    found = run(params, variant)
                except (UserError, ValueError) as error:  # diverged
                    print(f"{where}: {error}", file=sys.stderr)
                    found = dict.fromkeys(COLUMNS[len(KEY) :], float("nan"))
            add({**where, **found})
            print(f"{where} {found}", flush=True)


if __name__ == "__main__":
    main()
