"""Golden digests: what each method has made since its digest was recorded, it makes to the bit.

Float sums depend on the processor's instructions, so digests are kept for each kind of machine;
the option --record-golden records those of this one, from a commit whose results are right. A row
that a machine's digests lack is not compared there.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import digest, machine, make_project, run_isp, run_row, run_script, write_pictures
from instant_soup.files import read_json, read_yaml
from instant_soup.sparsity import masks
from instant_soup.training.state import load_state

DIGESTS = Path(__file__).with_name("golden.json")

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

TEXTS: dict[str, Any] = {
    "sparsity": 0.75,
    "seed": 3,
    "methods": [
        *("random", "erdos_renyi", "one_shot", "layerwise", "min_density", "n_of_m"),
        *("snip", "grasp", "early_bird", "progressive", "isp_plus"),
        *("lth", "lth_rewind", "lottery_pool", "random_init"),
        *("uniform_soup", "greedy_soup", "instant_model_soup"),
        *("grasp_absolute", "gmp", "lamp", "layer_budgets", "platon", "obert", "cap", "ac_dc"),
        *("granet", "rigl", "wanda", "sparsegpt", "multiflow", "movement", "soft_movement"),
        *("smp", "lottery_jackpots", "bip", "sparse_soup"),
    ],
    "training": {
        "epochs": 4,
        "batch_size": 16,
        "precision": "fp32",
        "learning_rate": 8e-3,
        "dropout": 0.1,
    },
    "isp": {"compression_rate": 0.3, "calibration": 0.1, "denoisers": 2, "look_ahead": 3},
    "criteria": {"batches": 3, "min_density": 0.22},
    "early_bird": {"every": 0.2, "window": 2, "threshold": 0.05},
    "imp": {"compression_rate": 0.4, "rewind": 0.2},
    "model_soup": {"networks": 2, "denoisers": 2, "steps": 3},
}
IMAGES: dict[str, Any] = {
    **{"sparsity": 0.6, "seed": 1},
    "methods": ["snip", "isp_plus", "progressive", "random_init"],
    "training": {"epochs": 3, "batch_size": 16, "precision": "fp32", "learning_rate": 2e-3},
    "isp": {"compression_rate": 0.3, "calibration": 0.2, "denoisers": 2, "look_ahead": 2},
}


def run_rows(folder: Path, params: dict[str, Any]) -> dict[str, str]:
    """Every row of a project, by the stages' own scripts."""
    run_script("dense_finetune")
    run_isp()
    for method in params["methods"]:
        run_row(method)
    found = {}
    for method in read_yaml("models/plan/tables.yaml")["methods"]:
        place = Path("models/retrained") / method
        run = read_json(place / "run.json")
        cost = {key: run["cost"][key] for key in ("steps", "search_steps", "flops", "sparse_flops")}
        found[method] = " ".join(
            [
                digest(load_state(place / "state", moments=False).weights),
                digest(masks.load(place / "mask.safetensors")),
                json.dumps([run["validation"], *cost.values()]),
            ]
        )
        run_script("evaluate", "--method", method)
        result = read_json(f"reports/results/{method}.json")
        found[method] += " " + json.dumps([result["test"], result["variant"]])
    return found


def of_pipeline(folder: Path, model: Path, dataset: Path, params: dict[str, Any]) -> dict[str, str]:
    make_project(folder, model, dataset, **params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        return run_rows(folder, params)


def everything(tiny_bert: Path, tiny_clip: Path, texts: Path, images: Path, tmp: Path) -> dict:
    for name in ("texts", "images"):
        (tmp / name).mkdir()
    return {
        "texts": of_pipeline(tmp / "texts", tiny_bert, texts, TEXTS),
        "images": of_pipeline(tmp / "images", tiny_clip, images, IMAGES),
    }


def test_results_are_those_of_before(
    tiny_bert: Path, tiny_clip: Path, tiny_data: Path, tmp_path: Path, request: Any
) -> None:
    recorded = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    pictures = write_pictures(tmp_path / "pictures", 140, 100, 90, (32, 32))
    found = everything(tiny_bert, tiny_clip, tiny_data, pictures, tmp_path)
    if request.config.getoption("--record-golden"):
        DIGESTS.write_text(json.dumps({**recorded, machine(): found}, indent=1) + "\n")
    elif machine() not in recorded:
        pytest.skip(f"no digests of this kind of machine ({machine()})")
    else:
        different = [
            (part, row, found[part].get(row), text)
            for part, rows in recorded[machine()].items()
            for row, text in rows.items()
            if found[part].get(row) != text
        ]
        assert different == []
