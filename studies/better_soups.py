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
import contextlib
import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import pandas as pd
import torch
from common import ROOT, params_with, prepare
from instant_soup.methods.protocols import draw_protocol
from scipy import stats
from torch.nn import functional

from instant_soup.data.batches import Split, load_split
from instant_soup.errors import UserError
from instant_soup.files import new_file, read_yaml, sha256
from instant_soup.methods import criteria
from instant_soup.methods.rounds import calibration_steps, round_sparsities
from instant_soup.models.clip import CONFIG, WEIGHTS
from instant_soup.pipeline import main_network
from instant_soup.pipeline.plan import check, plan
from instant_soup.sparsity import mask_soup, masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.schedule import steps_of
from instant_soup.training.state import State, Weights

RESULTS = ROOT / "reports/studies/better_soups.csv"
KEY = ("task", "sparsity", "seed", "variant", "settings")
COLUMNS = (*KEY, "validation", "test", "flops", "overlap_own", "overlap_one_shot")
AHEAD = 3.0  # `extrapolated`: so many times as far as the look-ahead went
SHARE = 0.5  # `distilled`: of the dense network's probabilities in the targets

# What a variant makes of the main network's prunable weights, its denoisers, and their weak masks:
# the next mask, with exactly k weights.
Cook = Callable[[Weights, list[State], list[Mask], int], Mask]


def progressive(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """The network's own magnitudes; the denoisers are left out (and their cost would be, too)."""
    return masks.keep_largest({n: w.abs() for n, w in weights.items()}, k)


def union(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """The paper: the union of the weak masks, adjusted by the network's magnitudes."""
    return mask_soup.adjust(mask_soup.combine(weak, "union"), weights, k)


def vote(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """The number of masks that keep a weight, then its magnitude."""
    return mask_soup.adjust(mask_soup.combine(weak, "vote"), weights, k)


def weighted_vote(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """Each mask's votes weigh as much as its denoiser's weight is large."""
    scores = {
        n: torch.stack([d.weights[n].abs() * m[n] for d, m in zip(denoisers, weak, strict=True)])
        for n in weights
    }
    # What no mask keeps follows, by the network's own magnitude.
    votes = {n: s.sum(0) for n, s in scores.items()}
    least = 1e-6 * min(float(w.abs().max()) for w in weights.values())
    return masks.keep_largest({n: v + least * weights[n].abs() for n, v in votes.items()}, k)


def mean_magnitude(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """|w| averaged over the denoisers: by how much they agree, not only how many."""
    scores = {n: sum(d.weights[n].abs() for d in denoisers) for n in weights}
    return masks.keep_largest(scores, k)  # type: ignore[arg-type]


def extrapolated(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """|w| as it will be when training goes on the way that the denoisers went."""
    scores = {}
    for name, w in weights.items():
        mean = sum(d.weights[name] for d in denoisers) / len(denoisers)
        scores[name] = (w + AHEAD * (mean - w)).abs()
    return masks.keep_largest(scores, k)


def fisher(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """w² times the mean squared gradient, which AdamW has measured while the denoisers trained."""
    moments = {n: sum(d.second_moments[n] for d in denoisers) for n in weights}
    return masks.keep_largest(criteria.fisher_scores(weights, moments), k)  # type: ignore[arg-type]


def saliency(weights: Weights, denoisers: list[State], weak: list[Mask], k: int) -> Mask:
    """|w · g| averaged over the denoisers, g the mean gradient that their AdamW holds."""
    scores = {
        n: torch.stack([(d.weights[n] * d.first_moments[n]).abs() for d in denoisers]).sum(0)
        for n in weights
    }
    return masks.keep_largest(scores, k)


VARIANTS: dict[str, Cook] = {
    "progressive": progressive,
    "progressive_longer": progressive,  # and its run takes the denoisers' steps
    "progressive_fisher": fisher,  # of the main network's own AdamW
    "progressive_longer_fisher": fisher,
    "union": union,
    "vote": vote,
    "weighted_vote": weighted_vote,
    "mean_magnitude": mean_magnitude,
    "extrapolated": extrapolated,
    "saliency": saliency,
    "fisher": fisher,
    "farther": union,  # one denoiser, which takes the steps of all
    "diverse": mean_magnitude,  # of denoisers with protocols far apart
    "souped_weights": union,  # and the weights become the denoisers' mean
    "souped_both": mean_magnitude,
    "souped_fisher": fisher,
    "union_fisher": union,  # with `fisher`'s scores everywhere in place of magnitudes
    "relay": union,  # each denoiser goes on from the last one, and the network from the final one
    "distilled": union,  # and the targets are in part the dense network's
}
SOUPED_WEIGHTS = ("souped_weights", "souped_both", "souped_fisher")
DIVERSE = {"learning_rate_range": [0.1, 10.0], "weight_decay_range": [0.0, 0.3], "subset": 0.1}


def run(chosen: dict, variant: str) -> dict[str, Any]:
    """One ISP run with a variant's soup, here; its scores, FLOPs, and how like its mask is."""
    isp, seed, plan = dict(chosen["isp"]), chosen["seed"], read_yaml("models/plan/dense.yaml")
    if variant == "diverse":
        isp |= DIVERSE
    if variant == "farther":
        isp |= {"denoisers": 1, "look_ahead": isp["denoisers"] * isp["look_ahead"]}
    steps_per_epoch, total = main_network.budget(plan)
    data = load_split(main_network.ENCODED / "train.safetensors", loop.device())
    cost = Cost()
    sparsities = round_sparsities(chosen["sparsity"], isp["compression_rate"], isp["rate_of"])
    beside = len(sparsities) * isp["denoisers"] * isp["look_ahead"]
    longer = (total + beside) / total if variant.startswith("progressive_longer") else 1.0
    t, total = steps_of(longer * isp["calibration"], steps_per_epoch), round(longer * total)
    around: contextlib.AbstractContextManager = contextlib.nullcontext()
    if variant == "distilled":
        data, around = distilled(data, plan, cost), patch.object(loop, "loss_of", soft_loss)
    state, mask = main_network.load_start("models/start")
    pretrained = {n: state.weights[n].clone() for n in mask}
    own = mask

    def train_to(last: int) -> State:
        model = main_network.build(state, plan)
        with around:
            return loop.train(
                model, state, mask, data, plan, cost, last=last, total=total, label=variant
            )

    for i, sparsity in enumerate(sparsities):
        state = train_to(state.step + calibration_steps(i, t))
        denoisers: list[State] = []
        for n in range(0 if variant.startswith("progressive") else isp["denoisers"]):
            protocol = draw_protocol({**plan, **isp}, len(data), key=(seed, i, n))
            rows = protocol.pop("rows")
            origin = denoisers[-1] if variant == "relay" and denoisers else state
            copy = State({name: w.clone() for name, w in origin.weights.items()})
            look_ahead, part = main_network.look_ahead(
                copy, mask, {**plan, **protocol}, rows, isp["look_ahead"], label=f"{i}/{n}"
            )
            denoisers.append(look_ahead)
            cost.add(part)
        view = fisher_scores if variant == "union_fisher" else prunable_weights
        weak = [criteria.magnitude(view(d, mask), sparsity) for d in denoisers]
        if variant == "relay":
            state.weights = denoisers[-1].weights
        if variant in SOUPED_WEIGHTS:
            for name, w in state.weights.items():
                if w.is_floating_point():
                    w.copy_(torch.stack([d.weights[name] for d in denoisers]).mean(0))
        prunable = view(state, mask)
        k = masks.keep_count(prunable, sparsity)
        own = criteria.magnitude(prunable_weights(state, mask), sparsity)
        mask = VARIANTS[variant](prunable, denoisers or [state], weak, k)
        state.prune(mask)
    state = train_to(total)
    one_shot = criteria.magnitude(pretrained, chosen["sparsity"])
    return {
        **scores_of(state, plan),
        "flops": cost.flops,
        "overlap_own": masks.cosine_similarity(mask, own),
        "overlap_one_shot": masks.cosine_similarity(mask, one_shot),
    }


def prunable_weights(state: State, mask: Mask) -> Weights:
    """The weights of a network that the mask is about."""
    return {name: state.weights[name] for name in mask}


def fisher_scores(state: State, mask: Mask) -> Weights:
    """The Fisher scores of a network by its own AdamW."""
    return criteria.fisher_scores(prunable_weights(state, mask), state.second_moments)


def scores_of(state: State, plan: dict) -> dict[str, float]:
    """A network's validation and test score."""
    where, precision = loop.device(), loop.resolve_precision(plan["precision"])
    model = main_network.build(state, plan).to(where)
    scores = {}
    for name in ("validation", "test"):
        split = load_split(main_network.ENCODED / f"{name}.safetensors", where)
        scores[name] = metrics.score(plan["metric"], *loop.predict(model, split, precision))
    return scores


def distilled(data: Split, plan: dict, cost: Cost) -> Split:
    """The training rows with targets that are in part a dense network's; its cost is added."""
    _, total = main_network.budget(plan)
    state, mask = main_network.load_start("models/start")
    model = main_network.build(state, plan)
    state = loop.train(
        model, state, mask, data, plan, cost, last=total, total=total, label="teacher"
    )
    teacher = main_network.build(state, plan).to(data.labels.device).eval()
    with torch.inference_mode():
        parts = [
            loop.logits_of(teacher, data.rows(index)).float().softmax(-1)
            for index in torch.arange(len(data)).split(256)
        ]
    soft = torch.cat(parts).clone()
    hard = functional.one_hot(data.labels.long(), soft.shape[1])
    return replace(data, labels=SHARE * soft + (1 - SHARE) * hard)


def soft_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of class numbers, or of probabilities where rows have several."""
    return functional.cross_entropy(logits.float(), targets)


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


def digest_of(chosen: dict) -> str:
    """A name for all settings that a run depends on beside its own columns.

    A model's folder counts by its weights, and where a task's copy lies does not count.
    """
    rest = {k: v for k, v in chosen.items() if k not in ("sparsity", "seed")}
    rest["data"] = {k: v for k, v in chosen["data"].items() if k != "path"}
    if chosen["model"].startswith("local:"):
        rest["model"] = sha256(Path(chosen["model"].removeprefix("local:")) / WEIGHTS)
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
    parser = argparse.ArgumentParser(description=__doc__)
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
        chosen = check(params_with(**{**changes, "sparsity": sparsity, "seed": seed}))
        for variant in options.variants:
            where = dict(zip(KEY, (name, sparsity, seed, variant, digest_of(chosen)), strict=True))
            known = read_runs()[list(KEY)].to_dict("records")
            if {key: str(value) for key, value in where.items()} in known:
                continue
            if not prepared:
                prepare(folder, seed=seed, **changes)
                prepared = True
            with chdir(folder):
                try:
                    found = run(chosen, variant)
                except (UserError, ValueError) as error:  # diverged
                    print(f"{where}: {error}", file=sys.stderr)
                    found = dict.fromkeys(COLUMNS[len(KEY) :], float("nan"))
            add({**where, **found})
            print(f"{where} {found}", flush=True)


if __name__ == "__main__":
    main()
