"""The records of the benchmarks as one page, reports/benchmarks.md.

python benchmarks/report.py
"""

from collections.abc import Callable
from typing import Any

import pandas as pd
from common import RECORDS, ROOT
from scaling import plot

from instant_soup.files import new_file, read_json


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table of some fields (field → heading); – where there is no figure."""

    def text(value: Any) -> str:
        if value is None or value != value:
            return "–"
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return str(value)

    lines = [" | ".join(columns.values()), " | ".join("---" for _ in columns)]
    lines += [" | ".join(text(row.get(field)) for field in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def against_reference(rows: list[dict[str, Any]]) -> str:
    """Ratios: the reference's seconds over ours, for the same work in one run."""
    for row in rows:
        like = [r for r in rows if r["what"] == row["what"] and r["kind"] == "reference style"]
        row["ratio"] = like[0]["seconds"] / row["seconds"]
    return table(rows, {
        "what": "work", "kind": "code", "seconds": "wall seconds", "ratio": "times as fast",
        "steps": "steps", "search_steps": "look-ahead steps", "sparsity": "sparsity",
        "accuracy": "test accuracy",
    })  # fmt: skip


def between_stages(rows: list[dict[str, Any]]) -> str:
    """ISP by stages beside ISP in one process."""
    return table(rows, {
        "kind": "ISP by", "code": "code", "seconds": "wall seconds", "validations": "validations",
        "ratio": "÷ one process", "ratio_validating": "÷ one process that validates",
        "accuracy": "test accuracy",
    })  # fmt: skip


def throughput(rows: list[dict[str, Any]]) -> str:
    """Speed of training, beside a large matrix product of the same type."""
    return table(rows, {
        "shape": "shape", "precision": "precision", "step_seconds": "seconds a step",
        "rows_per_second": "rows a second", "tflops": "TFLOP/s", "peak_tflops": "matmul TFLOP/s",
        "share_of_peak": "share", "gpu_memory_gib": "GPU memory (GiB)",
    })  # fmt: skip


def features(rows: list[dict[str, Any]]) -> str:
    """A training step with one feature off, or with something that was left out."""
    return table(rows, {
        "what": "step with", "step_seconds": "seconds a step", "ratio": "times as long",
        "before_seconds": "set-up and first steps (s)",
        "loss_moves": "fp32 loss moves by at most",
    })  # fmt: skip


def mask_work(rows: list[dict[str, Any]]) -> str:
    """Mask operations beside sorting, and beside the speed of copying memory."""
    for row in rows:
        if row["sorting_seconds"]:
            row["ratio"] = row["sorting_seconds"] / row["seconds"]
    return table(rows, {
        "weights": "weights", "operation": "operation", "seconds": "seconds",
        "ratio": "times as fast as sorting and floats", "share_of_copy": "share of copying speed",
        "extra_gib": "extra memory (GiB)", "bits_a_weight": "bits a weight on disk",
    })  # fmt: skip


def mask_share(found: dict[str, Any]) -> str:
    """How much of a round is mask work."""
    return (
        f"All mask work of a round of BERT-base (86 M prunable weights) takes "
        f"{found['mask_seconds']:.2f} s, beside {found['steps']} look-ahead steps of "
        f"{found['step_seconds']:.2f} s: {100 * found['share']:.2f} % of the round. Aim: below 1 %."
    )


def pruners(rows: list[dict[str, Any]]) -> str:
    """A pruner's own work in a step."""
    return table(rows, {
        "pruner": "pruner", "step": "a step (ms)", "own": "of it the pruner's own work (ms)",
        "share": "share",
    })  # fmt: skip


def startup(rows: list[dict[str, Any]]) -> str:
    """What is paid before any work."""
    return table(rows, {"what": "what", "cold": "cold (s)", "warm": "warm (s)"})


def pipeline_overhead(rows: list[dict[str, Any]]) -> str:
    """DVC's own seconds, and what entries that pass by take."""
    return table(rows, {
        "pipeline": "pipeline", "code": "code", "entries": "entries run",
        "first_seconds": "first dvc repro (s)", "dvc_seconds": "of it DVC's own (s)",
        "passed_by": "entries not needed", "passed_by_seconds": "their commands (s)",
        "again_seconds": "dvc repro again (s)", "dvc_yaml_lines": "dvc.yaml (lines)",
        "dvc_lock_bytes": "dvc.lock (bytes)",
    })  # fmt: skip


def memory(rows: list[dict[str, Any]]) -> str:
    """Peak memory of each stage's process, resident and of a GPU; a column for each shape."""
    found = pd.DataFrame(rows)
    found["stage"] = pd.Categorical(found["stage"], list(dict.fromkeys(found["stage"])))
    wide, columns = pd.DataFrame(index=found["stage"].cat.categories), {"stage": "stage"}
    for kind, heading in {"peak_gib": "GiB", "gpu_gib": "GiB of the GPU"}.items():
        if kind in found:
            own = found.pivot(index="stage", columns="shape", values=kind)
            wide[[f"{shape} {kind}" for shape in own]] = own
            columns |= {f"{shape} {kind}": f"{shape} ({heading})" for shape in own}
    return table(wide.rename_axis("stage").reset_index().to_dict("records"), columns)


def streaming(rows: list[dict[str, Any]]) -> str:
    """Memory and CPU time of pruning a language model without training, in memory and streamed."""
    return table(rows, {
        "method": "method", "how": "weights", "peak_gib": "peak (GiB)",
        "own_gib": "of it not Python's (GiB)", "told_gib": "as told before (GiB)",
        "cpu_seconds": "CPU time (s)",
    })  # fmt: skip


def inference(rows: list[dict[str, Any]]) -> str:
    """A classifier's forward pass in sparse layouts beside the dense one."""
    return table(rows, {
        "layout": "weights", "sparsity": "sparsity", "batch_size": "batch", "milliseconds": "ms",
        "dense_milliseconds": "dense (ms)", "mib": "MiB", "ratio": "times as fast, or as small",
    })  # fmt: skip


def precision(rows: list[dict[str, Any]]) -> str:
    """Test metric in bf16 and in fp32."""
    return table(rows, {
        "model": "model", "dataset": "dataset", "variant": "settings", "method": "method",
        "target_sparsity": "sparsity", "bf16": "bf16 (%)", "fp32": "fp32 (%)",
        "gap": "bf16 − fp32 (points)", "p": "paired p", "seeds": "seeds",
    })  # fmt: skip


def scaling(rows: list[dict[str, Any]]) -> str:
    """Time against model size, batch size and number of denoisers."""
    units = {
        "model size": ("M prunable weights", "s a step"),
        "batch size": ("texts a batch", "texts a second"),
        "denoisers": ("denoisers", "s of the first round"),
    }
    shown = []
    for row in rows:
        x, y = units[row["what"]]
        shown.append({"what": row["what"], "x": f"{row['x']:.3g} {x}", "y": f"{row['y']:.3g} {y}"})
    plot(rows, RECORDS / "scaling.png")
    picture = "![Scaling](benchmarks/scaling.png)\n\n"
    return picture + table(shown, {"what": "of", "x": "at", "y": "measured"})


SECTIONS: dict[str, tuple[Callable[..., str], str]] = {
    "Against code written the usual way": (
        against_reference,
        "The reference (benchmarks/reference_style.py) trains in fp32 with float masks of "
        "torch.nn.utils.prune, fetches padded samples one by one, and builds a model for each "
        "denoiser; padding to the longest text and processes are part of the difference. Ours runs "
        "each stage in a process of its own (but for the first, forked by warm_start.py), which "
        "also validates and saves: all of that is in its wall seconds, DVC's own time is not. "
        "The Trainer (benchmarks/trainer_style.py) has its best settings: bf16, batches of similar "
        "length, fused AdamW, the quicker attention. "
        "Steps: medians of three runs of 100, by turns; whole ISP: one run each. Aims: 4.5 times "
        "for the step, 5 times for whole ISP; 1.5 times the Trainer's.",
    ),
    "Against the machine's matrix speed": (
        throughput,
        "The quick preset as it stands; then batches of Table 1, 32 texts of 128 tokens with "
        "dropout or 128 images, with random weights. FLOPs by docs/method.md, so those that the "
        "last block leaves out in bf16 count, too. The matrix product is the best of two sizes. "
        "Aims: 60 % for the quick preset; 45 % on a GPU.",
    ),
    "What each feature is worth": (
        features,
        "A step of the pruned quick preset of texts without one of the features, or with what was "
        "tried and is not in the engine; set-up is paid by every stage process (torch.compile: "
        "from an empty cache). The last column: ten fp32 steps without dropout, where the feature "
        "must change nothing beyond rounding.",
    ),
    "Masks that move": (
        pruners,
        "Means over whole runs of the quick preset of texts to 80 %, in which most masks change "
        "every five steps until four fifths of the run. Aim: 5 %.",
    ),
    "Mask work": (
        mask_work,
        "At 70 % sparsity, with four weak masks, on the CPU. Copying speed counts bytes read and "
        "written. The sorting version of 1 B weights takes more than 24 GB, so there is none.",
    ),
    "Start-up": (
        startup,
        "Medians of three, page cache warm. A cold stage imports its libraries, a warm one is a "
        "fork of a process that has (warm_start.py). Aims: 0.3 s with nothing to do, 4 s until a "
        "step.",
    ),
    "Between the stages": (
        between_stages,
        "ISP with the quick preset of texts, without evaluation and DVC's own time. One process "
        "does not validate, which the stages do where their curve has a point; so as many "
        "validations are added in the last line. Aim: 1.15 times one process.",
    ),
    "The pipeline beside its work": (
        pipeline_overhead,
        "A clone's whole pipeline: two rounds of ISP with a network of two small layers. DVC's own "
        "seconds are those in which no stage's command runs. Aim: 10 s for all entries that are "
        "not needed.",
    ),
    "Memory": (
        memory,
        "Peak resident memory of a stage's process, batches of Table 1, one look-ahead step.",
    ),
    "Memory of a language model without training": (
        streaming,
        "Peak resident memory of `instant-soup oneshot` at 50 % sparsity, on one thread: a made-up "
        "Llama of 4 blocks of width 512 (21 million weights in bf16 files; 0.08 GiB in fp32, a "
        "block 0.01), blocks of 256 tokens, four of calibration text. Each case is a fork of a "
        "process that has run the command on a model of next to no weights.",
    ),
    "Scaling": (scaling, "Stages one after another, start-ups included in the round."),
    "Inference": (
        inference,
        "The packaged BERT's classifier on texts of 32 tokens, in fp32 where nothing else is said; "
        "the file is that of the pruned matrices in bf16, beside their dense size.",
    ),
    "Accuracy guard": (
        precision,
        "Test metric, mean ± sample standard deviation over seeds: runs of the quick preset in "
        "bf16 and the same in fp32 (grids/precision.yaml). Images have a checkpoint of their own, "
        "on which both were run.",
    ),
}


def main() -> None:
    parts = ["# Benchmarks", "`make bench` measures all of this again and writes this page."]
    for title, (render, about) in SECTIONS.items():
        path = RECORDS / f"{render.__name__}.json"
        if not path.exists():
            parts += [f"## {title}", "Not measured."]
            continue
        kept = read_json(path)
        taken = ""
        if machine := kept["machine"]:
            where = machine["gpu"] or f"{machine['threads']} cores of {machine['cpu']}"
            taken = f"{kept['date']}, {kept['code']}, {where}, torch {machine['torch']}."
        parts += [f"## {title}", f"{about} {taken}".strip(), render(kept["rows"])]
        if found := kept.get("round"):
            parts.append(mask_share(found))
    with new_file(ROOT / "reports/benchmarks.md") as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
