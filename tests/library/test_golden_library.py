"""Golden digests: what `prune` and the callback have made since these were recorded.

Float sums depend on the processor's instructions, so digests are kept for each kind of machine;
--record-golden records those of this one, from a commit whose results are right.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import instant_soup
from helpers import (
    CALLBACK_SETTINGS,
    PRUNE_SETTINGS,
    digest,
    loader,
    loss,
    machine,
    new_classifier,
    perceptron,
    trainer,
)

DIGESTS = Path(__file__).with_name("golden.json")

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


def results(tiny_bert: Path, folder: Path) -> dict[str, str]:
    """`prune` and the Trainer's callback, by magnitude and by Fisher scores."""
    found = {}
    for name, more in (("isp", {}), ("fisher", {"score": "fisher", "denoisers": 0})):
        pruned = instant_soup.prune(perceptron(), loader(), loss, **{**PRUNE_SETTINGS, **more})
        found[f"prune {name}"] = f"{digest(pruned.model.state_dict())} {digest(pruned.mask)}"
        model = new_classifier(tiny_bert, 2, 0)
        callback = instant_soup.InstantSoupCallback(**{**CALLBACK_SETTINGS, **more})
        trainer(folder / name, model, callback).train()
        found[f"callback {name}"] = f"{digest(model.state_dict())} {digest(callback.mask)}"
    return found


def test_results_are_those_of_before(tiny_bert: Path, tmp_path: Path, request: Any) -> None:
    recorded = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    found = results(tiny_bert, tmp_path)
    if request.config.getoption("--record-golden"):
        DIGESTS.write_text(json.dumps({**recorded, machine(): found}, indent=1) + "\n")
    elif machine() not in recorded:
        pytest.skip(f"no digests of this kind of machine ({machine()})")
    else:
        assert found == recorded[machine()]
