"""The records of the benchmarks as one page, reports/benchmarks.md.

python benchmarks/report.py
"""

from typing import Any

import pandas as pd
from common import RECORDS, ROOT

from instant_soup.files import new_file, read_json


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table of some fields (field → heading); – where there is no figure."""

    def text(value: Any) -> str:
        if value is None or value != value:
            return "–"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [" | ".join(columns.values()), " | ".join("---" for _ in columns)]
    lines += [" | ".join(text(row.get(field)) for field in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def against_reference(rows: list[dict[str, Any]]) -> str:
    """Ratios: the reference's seconds over ours, for the same work in one run."""
    for row in rows:
        like = [r for r in rows if r["what"] == row["what"] and r["kind"] == "reference style"]
        row["ratio"] = like[0]["seconds"] / row["seconds"]
        if engine := row.get("engine_seconds"):
            row["engine_ratio"] = like[0]["engine_seconds"] / engine
    return table(rows, {
        "what": "work", "kind": "code", "seconds": "wall seconds", "ratio": "times as fast",
        "engine_seconds": "without start-up (s)", "engine_ratio": "times as fast without start-up",
        "steps": "steps", "search_steps": "look-ahead steps",
    })  # fmt: skip


def throughput(rows: list[dict[str, Any]]) -> str:
    """Speed of training, beside a large matrix product of the same type."""
    return table(rows, {
        "shape": "shape", "precision": "precision", "step_seconds": "seconds a step",
        "rows_per_second": "rows a second", "tflops": "TFLOP/s", "peak_tflops": "matmul TFLOP/s",
        "share_of_peak": "share", "peak_memory_gib": "peak memory (GiB)",
    })  # fmt: skip


def features(rows: list[dict[str, Any]]) -> str:
    """A training step with one feature off, or with something that was left out."""
    return table(rows, {
        "what": "step with", "step_seconds": "seconds a step", "ratio": "times as long",
        "before_seconds": "set-up and first steps (s)",
    })  # fmt: skip


def mask_work(rows: list[dict[str, Any]]) -> str:
    """Mask operations beside sorting, and beside the speed of copying memory."""
    for row in rows:
        if row["sorting_seconds"]:
            row["ratio"] = row["sorting_seconds"] / row["seconds"]
    return table(rows, {
        "weights": "weights", "operation": "operation", "seconds": "seconds",
        "ratio": "times as fast as sorting and floats", "share_of_copy": "share of copying speed",
        "extra_gib": "extra memory (GiB)", "file_mib": "file (MiB)",
    })  # fmt: skip


def startup(rows: list[dict[str, Any]]) -> str:
    """What is paid before any work."""
    return table(rows, {"what": "what", "seconds": "seconds"})


def memory(rows: list[dict[str, Any]]) -> str:
    """Peak resident memory of each stage's process, a column for each shape."""
    wide = pd.DataFrame(rows).pivot(index="stage", columns="shape", values="peak_gib")
    wide = wide.loc[list(dict.fromkeys(row["stage"] for row in rows))]
    columns = {"stage": "stage"} | {shape: f"{shape} (GiB)" for shape in wide.columns}
    return table(wide.reset_index().to_dict("records"), columns)


def inference(rows: list[dict[str, Any]]) -> str:
    """A classifier's forward pass in sparse layouts beside the dense one."""
    return table(rows, {
        "layout": "weights", "sparsity": "sparsity", "batch_size": "batch", "milliseconds": "ms",
        "dense_milliseconds": "dense (ms)", "mib": "MiB", "ratio": "times as fast, or as small",
    })  # fmt: skip


def precision(rows: list[dict[str, Any]]) -> str:
    """Test metric in bf16 and in fp32."""
    return table(rows, {
        "model": "model", "dataset": "dataset", "method": "method", "target_sparsity": "sparsity",
        "bf16": "bf16 (%)", "fp32": "fp32 (%)", "gap": "bf16 − fp32 (points)", "seeds": "seeds",
    })  # fmt: skip


def scaling(rows: list[dict[str, Any]]) -> str:
    """Time against model size, batch size and number of denoisers."""
    return "![Scaling](benchmarks/scaling.png)"


SECTIONS = {
    "Against code written the usual way": (
        against_reference,
        "The reference (benchmarks/reference_style.py) trains in fp32 with float masks of "
        "torch.nn.utils.prune, fetches padded samples one by one, and builds a model for each "
        "denoiser. Ours runs each stage in a process of its own; their start-ups are in its wall "
        "seconds, DVC's own time is not.",
    ),
    "Against the machine's matrix speed": (
        throughput,
        "Batches of Table 1: 32 texts of 128 tokens with dropout, 128 images. FLOPs by "
        "docs/method.md; random weights.",
    ),
    "What each feature is worth": (
        features,
        "A step of the pruned quick preset of texts. What is marked as tried is not in the engine: "
        "its set-up is paid by every stage process.",
    ),
    "Mask work": (
        mask_work,
        "At 70 % sparsity, with four weak masks. Copying speed counts bytes read and written.",
    ),
    "Start-up": (startup, ""),
    "Memory": (memory, "Peak resident memory of a stage's process, batches of Table 1."),
    "Scaling": (scaling, ""),
    "Inference": (
        inference,
        "The packaged BERT's classifier on texts of 32 tokens, in fp32 where nothing else is said; "
        "the file is that of the pruned matrices in bf16, beside their dense size.",
    ),
    "Accuracy guard": (
        precision,
        "Test metric, mean ± sample standard deviation over seeds: the quick grid's runs in bf16 "
        "and the same in fp32 (grids/precision.yaml).",
    ),
}


def main() -> None:
    parts = ["# Benchmarks", "`make bench` measures all of this again and writes this page."]
    for title, (render, about) in SECTIONS.items():
        path = RECORDS / f"{render.__name__}.json"
        if not path.exists():
            continue
        kept = read_json(path)
        machine = kept["machine"]
        where = machine["gpu"] or f"{machine['threads']} cores of {machine['cpu']}"
        # What comes out of the ledger may have run anywhere.
        taken = "" if render is precision else f"Taken on {where}, torch {machine['torch']}."
        text = " ".join(words for words in (about, taken) if words)
        parts += [f"## {title}", text, render(kept["rows"])]
    with new_file(ROOT / "reports/benchmarks.md") as unfinished:
        unfinished.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
