"""Golden digests: what each method made before the house was rebuilt, it makes to the bit.

Float sums depend on the processor's instructions, so digests are kept for each kind of machine;
`python tests/test_golden.py` records those of this one, from a commit whose results are right.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import digest, machine, make_project, run_script
from instant_soup.files import read_json, read_yaml
from instant_soup.sparsity import masks
from instant_soup.training.state import load_state

DIGESTS = Path(__file__).with_name("golden.json")

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

TEXTS: dict[str, Any] = {
    "sparsity": 0.75,
    "seed": 3,
    "baselines": [
        *("random", "erdos_renyi", "one_shot", "layerwise", "min_density", "n_of_m"),
        *("snip", "grasp", "early_bird", "progressive", "isp_plus"),
    ],
    "lottery": ["lth", "lth_rewind", "lottery_pool"],
    "controls": ["random_init"],
    "soups": ["uniform_soup", "greedy_soup", "instant_model_soup"],
    "soup_members": [0, 1],
    "weak_seeds": [0, 1],
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
    **{"sparsity": 0.6, "seed": 1, "baselines": ["snip", "isp_plus", "progressive"]},
    "training": {"epochs": 3, "batch_size": 16, "precision": "fp32", "learning_rate": 2e-3},
    "isp": {"compression_rate": 0.3, "calibration": 0.2, "denoisers": 2, "look_ahead": 2},
    "controls": ["random_init"],
}


def run_rows(folder: Path, params: dict[str, Any]) -> dict[str, str]:
    """Every row of a project, by the stages' own scripts."""
    rounds = range(5)
    run_script("dense_finetune")
    for i in rounds:
        run_script("calibrate", "--round", i)
        for n in range(2):
            run_script("weak_mask", "--round", i, "--denoiser", n)
        run_script("mask_soup", "--round", i)
    run_script("sparse_retrain", "--method", "isp")
    for method in params["baselines"]:
        run_script("find_ticket", "--method", method)
        run_script("sparse_retrain", "--method", method)
    for method in params.get("lottery", []):
        run_script("imp_start", "--chain", method)
        for i in rounds:
            run_script("imp_round", "--chain", method, "--round", i)
    for method in params.get("lottery", []):
        run_script("lottery_result", "--method", method)
    for method in params["controls"]:
        run_script("sparse_retrain", "--method", method)
    for kind in ("networks", "denoisers"):
        for n in params.get("soup_members", []):
            run_script("soup_member", "--kind", kind, "--member", n)
    for method in params.get("soups", []):
        run_script("model_soup", "--method", method)
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


def pictures(folder: Path) -> Path:
    """Bright and dark pictures in class folders."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, rows in (("train", 60), ("test", 20)):
        for name, level in (("bright", 140), ("dark", 100)):
            (folder / split / name).mkdir(parents=True)
            for i in range(rows):
                pixels = draw.integers(level - 90, level + 90, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_results_are_those_of_before(
    tiny_bert: Path, tiny_clip: Path, tiny_data: Path, tmp_path: Path, request: Any
) -> None:
    recorded = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    found = everything(tiny_bert, tiny_clip, tiny_data, pictures(tmp_path / "pictures"), tmp_path)
    if request.config.getoption("--record-golden"):
        DIGESTS.write_text(json.dumps({**recorded, machine(): found}, indent=1) + "\n")
    elif machine() not in recorded:
        pytest.skip(f"no digests of this kind of machine ({machine()})")
    else:
        for part, rows in recorded[machine()].items():
            for row, text in rows.items():
                assert (part, row, found[part][row]) == (part, row, text)
