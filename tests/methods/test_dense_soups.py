"""Dense soups by the stages' own scripts: their networks, the mixtures, and what they cost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import assert_same_weights, cost_in, make_project, run_script, state_in
from instant_soup.files import read_json, read_yaml
from instant_soup.methods import dense_soups
from instant_soup.methods.registry import SOUPS
from instant_soup.pipeline import main_network
from instant_soup.sparsity import masks
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.state import Weights

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

MEMBERS = 3
# Six steps a run.
PARAMS: dict[str, Any] = {
    "sparsity": 0.6,
    "seed": 3,
    "baselines": [],
    "soups": list(SOUPS),
    "soup_members": list(range(MEMBERS)),
    "training": {
        "epochs": 0.6,
        "batch_size": 16,
        "precision": "fp32",
        "learning_rate": 2e-3,
        "dropout": 0.1,
    },
    "model_soup": {"networks": MEMBERS, "denoisers": 2, "steps": 3, "sparsity_range": [0.2, 0.6]},
}


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project in which all dense soups have run."""
    folder = make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        for kind in ("networks", "denoisers"):
            for n in range(MEMBERS):
                run_script("soup_member", "--kind", kind, "--member", n)
        for method in SOUPS:
            run_script("model_soup", "--method", method)
    return folder


@pytest.fixture
def inside(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the project."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def weights_in(folder: str) -> Weights:
    return state_in(folder).weights


def score(weights: Weights) -> float:
    plan = read_yaml("models/plan/model_soup_greedy_soup.yaml")
    _, mask = main_network.load_start("models/start")
    return main_network.validation_score(plan, mask, Cost())(weights)


def test_members_are_trained_each_under_its_own_protocol(inside) -> None:
    found = [weights_in(f"models/members/networks_{n}") for n in range(MEMBERS)]
    assert len({float(w["classifier.weight"].sum()) for w in found}) == MEMBERS
    protocols = [
        read_json(Path(f"models/members/networks_{n}/run.json"))["protocol"] for n in range(MEMBERS)
    ]
    assert len({p["learning_rate"] for p in protocols}) == MEMBERS
    assert all(1e-3 <= p["learning_rate"] <= 4e-3 for p in protocols)  # half to twice the base
    assert [cost_in(f"models/members/networks_{n}")["steps"] for n in range(MEMBERS)] == [6] * 3


def test_denoisers_are_sparse_networks_of_the_pretrained_weights(inside) -> None:
    for n, sparsity in enumerate((0.2, 0.6)):
        folder = f"models/members/denoisers_{n}"
        mask = masks.load(f"{folder}/mask.safetensors", main_network.prunable_shapes())
        assert masks.sparsity(mask) == pytest.approx(sparsity, abs=1e-4)
        weights = weights_in(folder)
        assert all(not weights[name][~kept].any() for name, kept in mask.items())
        cost = cost_in(folder)
        assert (cost["steps"], cost["search_steps"]) == (0, 3)
    assert Path("models/members/denoisers_2/idle.txt").exists()


def test_the_uniform_soup_is_the_mean_of_its_networks(inside) -> None:
    networks = [weights_in(f"models/members/networks_{n}") for n in range(MEMBERS)]
    assert_same_weights(
        weights_in("models/retrained/uniform_soup"), dense_soups.uniform_soup(networks)
    )


def test_the_greedy_soup_is_not_below_its_best_network(inside) -> None:
    networks = [weights_in(f"models/members/networks_{n}") for n in range(MEMBERS)]
    found = weights_in("models/retrained/greedy_soup")
    assert score(found) >= max(score(weights) for weights in networks)
    chosen = read_json(Path("models/retrained/greedy_soup/run.json"))["members"]
    assert_same_weights(found, dense_soups.uniform_soup([networks[i] for i in chosen]))


def test_instant_model_soup_begins_no_worse_and_is_fine_tuned(inside) -> None:
    plan = read_yaml("models/plan/model_soup_instant_model_soup.yaml")
    current, mask = main_network.load_start("models/start")
    best = score(current.weights)
    taken = read_json(Path("models/retrained/instant_model_soup/run.json"))["coefficients"]
    assert len(taken) == 2
    for n, share in enumerate(taken):
        other = weights_in(f"models/members/denoisers_{n}")
        current.weights = dense_soups.interpolate(current.weights, other, share)
        assert score(current.weights) >= best
        best = score(current.weights)
    # From there it is the plain run.
    data = main_network.load_split(main_network.ENCODED / "train.safetensors", torch.device("cpu"))
    model, cost = main_network.build(current, plan), Cost()
    expected = loop.train(model, current, mask, data, plan, cost, last=6, total=6, label="expected")
    assert_same_weights(weights_in("models/retrained/instant_model_soup"), expected.weights)


def test_costs_are_those_of_the_parts_and_of_looking_at_validation_data(inside) -> None:
    full = [cost_in(f"models/members/networks_{n}") for n in range(MEMBERS)]
    uniform, greedy = (cost_in(f"models/retrained/{m}_soup") for m in ("uniform", "greedy"))
    assert (uniform["steps"], uniform["search_steps"]) == (0, 6 * MEMBERS)
    assert greedy["flops"] > uniform["flops"] > sum(cost["flops"] for cost in full)
    instant = cost_in("models/retrained/instant_model_soup")
    assert (instant["steps"], instant["search_steps"]) == (6, 2 * 3)


@pytest.mark.parametrize("method", SOUPS)
def test_a_soup_is_evaluated_as_a_dense_row(inside, method: str) -> None:
    run_script("evaluate", "--method", method)
    result = read_json(f"reports/results/{method}.json")
    assert (result["target_sparsity"], result["sparsity"], result["pruned_weights"]) == (0, 0, 0)
    assert 0 <= result["test"]["accuracy"] <= 1
