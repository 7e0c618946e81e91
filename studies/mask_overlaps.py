"""How alike the masks of a grid's rows are, and where they leave weights.

    python studies/mask_overlaps.py            # of all experiments here, and the page
    python studies/mask_overlaps.py --report   # only the page, reports/studies/mask_overlaps.md

Masks are read out of DVC's cache, from the experiments that a grid leaves behind; rows that are
known stay. A row's reference is ISP+'s mask with default settings, of the same model, data,
sparsity and seed.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import pandas as pd
from common import ROOT
from dvc.api import DVCFileSystem

from instant_soup.files import new_file
from instant_soup.methods.registry import DENSE
from instant_soup.pipeline.processes import git
from instant_soup.reports.ledger import KEY
from instant_soup.reports.render import Cell, Chapter, Table, markdown
from instant_soup.reports.results import label, percent, row_order
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.names import type_of

RESULTS = ROOT / "reports/studies/mask_overlaps.csv"
COLUMNS = (*KEY, "with_isp_plus", "with_one_shot", "densities")
PLACE = ["model", "dataset", "preset", "target_sparsity", "seed"]
REFERENCE = "isp_plus"
TEXT = (
    "Cosine of each row's mask with ISP+'s (default settings) and with one-shot magnitude's, and "
    "the share of weights that stay in each kind of matrix; means over the seeds at hand. Sorted "
    "by the cosine with ISP+'s."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="only write the page")
    known = pd.read_csv(RESULTS, keep_default_na=False) if RESULTS.exists() else pd.DataFrame()
    if not parser.parse_args().report:
        found = pd.DataFrame(list(overlaps(masks_of_experiments())), columns=list(COLUMNS))
        known = pd.concat([known, found]).drop_duplicates(list(KEY), keep="last")
        with new_file(RESULTS) as unfinished:
            known.sort_values(list(KEY)).to_csv(unfinished, index=False, quoting=csv.QUOTE_MINIMAL)
    RESULTS.with_suffix(".md").write_text(markdown([chapter(known)]))


def masks_of_experiments() -> Iterator[tuple[dict, Mask]]:
    """(result, mask) of each row that an experiment has trained and DVC's cache still holds."""
    for ref in git(ROOT, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines():
        if not ref.startswith("refs/exps/exec") and ref.count("/") == 4:
            files = DVCFileSystem(str(ROOT), rev=ref)
            for path in files.find("/models/retrained"):
                if not path.endswith("mask.safetensors"):
                    continue
                method = path.split("/")[-2]
                result = json.loads(files.read_text(f"/reports/results/{method}.json"))
                with TemporaryDirectory() as folder:
                    files.get(path, f"{folder}/mask.safetensors")
                    if method != DENSE:
                        yield result, masks.load(f"{folder}/mask.safetensors")


def overlaps(found: Iterator[tuple[dict, Mask]]) -> Iterator[dict]:
    """A line of COLUMNS for each mask of a place where ISP+ is."""
    places: dict[tuple, list[tuple[dict, Mask]]] = {}
    for result, mask in found:
        places.setdefault(tuple(result[name] for name in PLACE), []).append((result, mask))
    for own in places.values():
        reference = [m for r, m in own if r["method"] == REFERENCE and not r["variant"]]
        for result, mask in own if reference else []:
            yield {
                **{name: result[name] for name in KEY},
                "with_isp_plus": masks.cosine_similarity(mask, reference[0]),
                "with_one_shot": result["overlap_one_shot"],
                "densities": json.dumps(densities(mask)),
            }


def densities(mask: Mask) -> dict[str, float]:
    """Share of the weights that stay, by kind of matrix, in the mask's order."""
    kinds: dict[str, Mask] = {}
    for name, kept in mask.items():
        kinds.setdefault(type_of(name), {})[name] = kept
    return {kind: 1 - masks.sparsity(own) for kind, own in kinds.items()}


def chapter(rows: pd.DataFrame) -> Chapter:
    """A table for each model, dataset and sparsity."""
    tables = []
    for (model, dataset, preset, sparsity), own in rows.groupby(PLACE[:4]) if len(rows) else []:
        shares = pd.DataFrame([json.loads(text) for text in own["densities"]], index=own.index)
        numbers = own[["method", "variant", "with_isp_plus", "with_one_shot"]].join(shares)
        means = numbers.groupby(["method", "variant"]).mean().reset_index()
        rows_of = zip(means["method"], means["variant"], strict=True)
        means["order"] = [row_order(method, variant) for method, variant in rows_of]
        means = means.sort_values(["with_isp_plus", "order"], ascending=[False, True])
        lines = []
        for line in means.to_dict("records"):
            cells = [Cell(f"{line['with_isp_plus']:.3f}"), Cell(f"{line['with_one_shot']:.3f}")]
            cells += [Cell(f"{100 * line[kind]:.1f} %") for kind in shares.columns]
            lines.append((label(line["method"], line["variant"]), cells))
        columns = [("cosine with", "ISP+"), ("cosine with", "one-shot")]
        columns += [("stays in", kind) for kind in shares.columns]
        title = f"{model} · {dataset} · {preset}, {percent(sparsity)} sparse"
        tables.append(Table(title, columns, lines, ""))
    return Chapter("How alike masks are, and where weights stay", TEXT, tables)


if __name__ == "__main__":
    main()
