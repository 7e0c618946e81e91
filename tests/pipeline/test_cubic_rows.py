"""Ramps and restarts through the stages: ISP's chain of them and one ticket stage are one run."""

from pathlib import Path
from typing import Any

import pytest

from helpers import make_project, run_isp, run_row, same
from instant_soup.files import read_json
from instant_soup.sparsity import masks
from instant_soup.training.state import load_state

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

RAMP = {"schedule": "cubic", "prunes": 3, "first_cut": 0.5, "begin": 0.1, "end": 0.6, "cycles": 3}
TRAINING = {"epochs": 1, "batch_size": 16, "precision": "fp32", "learning_rate": 5e-3}


@pytest.fixture
def project(tiny_bert: Path, tiny_data: Path, tmp_path: Path, monkeypatch: Any) -> Path:
    """ISP without denoisers, GMP* and layer budgets, trained by the stages' scripts."""
    make_project(
        tmp_path, tiny_bert, tiny_data, sparsity=0.7, methods=["gmp", "layer_budgets"],
        training=TRAINING, isp={**RAMP, "denoisers": 0}, gmp=RAMP, budgets={"levels": 3},
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    run_isp()
    for row in ("gmp", "layer_budgets"):
        run_row(row)
    return tmp_path


def test_isps_stages_and_gmps_ticket_are_the_same_run(project: Path) -> None:
    """Without denoisers ISP is progressive magnitude: to the bit, restarts and all."""
    parts = {}
    for row in ("isp", "gmp", "layer_budgets"):
        folder = Path("models/retrained") / row
        mask, result = masks.load(folder / "mask.safetensors"), read_json(folder / "run.json")
        kept, total = masks.count(mask)
        assert total - kept == round(0.7 * total)
        parts[row] = load_state(folder / "state", moments=False).weights, mask, result
    assert same(parts["isp"][0], parts["gmp"][0]) and same(parts["isp"][1], parts["gmp"][1])
    costs = {row: part[2]["cost"] for row, part in parts.items()}
    assert costs["isp"]["flops"] == pytest.approx(costs["gmp"]["flops"])
    # The passes that layers are probed by are in the cost: 3 levels of 12 matrices, and one more,
    # of one batch, which may be shorter than others.
    step = costs["gmp"]["flops"] / costs["gmp"]["steps"]
    probed = costs["layer_budgets"]["flops"] - costs["gmp"]["flops"]
    assert probed % 37 == 0 and 0.5 < probed / (37 / 3 * step) < 1.5
