"""bf16 against fp32 over seeds, out of the ledger (grids/quick.yaml and grids/precision.yaml).

python benchmarks/precision.py
"""

import pandas as pd
from common import ROOT, record
from scipy.stats import ttest_rel

from instant_soup.reports.ledger import KEY

FP32 = "training.precision=fp32"
CELL = [name for name in KEY if name != "seed"]


def compare(ledger: pd.DataFrame) -> list[dict]:
    """Each cell that was run both ways: means and standard deviations in percent, over seeds.

    A seed counts once: runs both ways are on one kind of processor, or both on one without a name.

    `p` is that of the paired t-test; None with fewer than three seeds, or where no gap differs.
    """
    parts = ledger["variant"].str.split()
    ledger = ledger.assign(variant=parts.map(lambda own: " ".join(p for p in own if p != FP32)))
    in_fp32 = parts.map(lambda own: FP32 in own)
    both = ledger[in_fp32].merge(
        ledger[~in_fp32 & (ledger["precision"] == "bf16")],
        on=[*CELL, "seed", "base", "processor"], suffixes=("_fp32", "_bf16"),
    )  # fmt: skip
    rows = []
    for cell, found in both.groupby(CELL, sort=False):
        values = {kind: 100 * found[f"value_{kind}"].astype(float) for kind in ("fp32", "bf16")}
        gap = values["bf16"] - values["fp32"]
        rows.append({
            **dict(zip(CELL, cell, strict=True)), "seeds": len(found),
            **{kind: f"{v.mean():.2f}{spread(v)}" for kind, v in values.items()},
            "gap": f"{gap.mean():+.2f}{spread(gap)}",
            "p": float(ttest_rel(*values.values()).pvalue) if gap.std() and len(gap) > 2 else None,
        })  # fmt: skip
    return rows


def spread(values: pd.Series) -> str:
    """The sample standard deviation, where there is one."""
    return f" ± {values.std():.2f}" if len(values) > 1 else ""


def main() -> None:
    ledger = pd.read_csv(ROOT / "reports/results.csv", dtype=str, keep_default_na=False)
    rows = compare(ledger)
    if rows:
        record("precision", rows, machine=None)  # the ledger's rows may have run anywhere
    else:
        print("no cell was run both ways: run grids/quick.yaml and grids/precision.yaml first")


if __name__ == "__main__":
    main()
