"""Dense soups by the stages' own scripts: their networks, the mixtures, and what they cost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import (
    FakeRun,
    assert_same_weights,
    cost_in,
    found_by,
    make_project,
    prunable,
    run_row,
    run_script,
    same,
    state_in,
    steps_taken,
    trained,
    training_for,
    work_in,
)
from instant_soup.config.sections import Recipe
from instant_soup.data import batches
from instant_soup.files import read_json
from instant_soup.methods import registry, soups
from instant_soup.pipeline.run import PipelineRun
from instant_soup.pipeline.stage_files import TicketStage
from instant_soup.pipeline.workspace import ENCODED, START, load_start, load_ticket
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.protocols import Protocol, draw_protocol
from instant_soup.training.state import State, Weights

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

MEMBERS = 3
SOUPS = [name for name in registry.dense_rows() if name != "dense"]
# Six steps a run.
PARAMS: dict[str, Any] = {
    "sparsity": 0.6,
    "seed": 3,
    "methods": SOUPS,
    "training": training_for(0.6),
    "model_soup": {"networks": MEMBERS, "denoisers": 2, "steps": 3, "sparsity_range": [0.2, 0.6]},
}


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project in which all dense soups have run."""
    folder = make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, folder, patch)
        for method in SOUPS:
            run_row(method)
    return folder


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the project."""
    work_in(project, project, monkeypatch)


class Watched(PipelineRun):
    """A run that remembers the networks that it has trained, fully or looking ahead."""

    networks: list[tuple[Recipe, Weights, Mask, Cost]]

    def train(self, last: int, label: str, **how: Any) -> None:
        before = vars(self.cost).copy()
        super().train(last, label, **how)
        cost = Cost(**{part: value - before[part] for part, value in vars(self.cost).items()})
        weights = self.state.copy().weights
        self.networks.append((how.get("recipe", self.recipe), weights, self.mask, cost))

    def look_ahead(self, protocol: Protocol, steps: int, label: str, *mask: Mask) -> State:
        before = vars(self.cost).copy()
        state = super().look_ahead(protocol, steps, label, *mask)
        cost = Cost(**{part: value - before[part] for part, value in vars(self.cost).items()})
        recipe = protocol.applied_to(self.recipe)
        self.networks.append((recipe, state.copy().weights, *mask, cost))
        return state


@pytest.fixture(scope="module")
def watched(project: Path) -> dict[str, Watched]:
    """Soup → its search, without a store of former trainings."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for method in SOUPS:
            work_in(project, project / method, patch)
            run = Watched(*load_start(START), recipe(), FakeRun())
            run.networks = []
            stage = TicketStage.read(f"models/plan/ticket_{method}.yaml")
            stage.build().find(run, stage.sparsity)
            found[method] = run
    return found


def recipe() -> Recipe:
    """The settings of training, which all rows have in common."""
    found = TicketStage.read("models/plan/ticket_greedy_soup.yaml").recipe
    assert found is not None
    return found


def networks_of(run: Watched) -> list[Weights]:
    """The weights of the networks that a soup is mixed of."""
    return [weights for _, weights, _, _ in run.networks]


def weights_in(folder: str) -> Weights:
    """The weights in a folder."""
    return state_in(folder).weights


def score(weights: Weights) -> float:
    """The score of weights on the validation split."""
    run = PipelineRun(*load_start(START), recipe(), stored=False)
    split = batches.load_split(ENCODED / "validation.safetensors", torch.device("cpu"))
    network = run.network(State(weights), recipe())
    return metrics.score(recipe().metric, *loop.predict(network, split, "fp32"))


def test_the_soups_are_these() -> None:
    assert sorted(SOUPS) == ["greedy_soup", "instant_model_soup", "uniform_soup"]


def test_members_are_trained_each_under_its_own_protocol(inside, watched) -> None:
    found = watched["uniform_soup"].networks
    assert len(found) == MEMBERS
    assert len({float(weights["classifier.weight"].sum()) for _, weights, _, _ in found}) == MEMBERS
    recipes = [own for own, _, _, _ in found]
    assert len({own.learning_rate for own in recipes}) == MEMBERS
    assert all(1e-3 <= own.learning_rate <= 4e-3 for own in recipes)  # half to twice the base
    assert all(0 <= own.weight_decay <= 0.1 for own in recipes)
    assert [cost.steps for _, _, _, cost in found] == [6] * MEMBERS
    # Drawn from the seed, apart from the draws of ISP's rounds.
    start, mask = load_start(START)
    for n, (own, weights, _, _) in enumerate(found):
        key = (3, n, 1000 + len("networks"))
        protocol = draw_protocol(recipe(), [0.5, 2.0], [0.0, 0.1], 1.0, 160, key)
        assert own == protocol.applied_to(recipe())
        assert_same_weights(weights, trained(start, mask, own, 6).weights)


def test_both_soups_of_networks_have_the_same_ones(inside, watched) -> None:
    one, other = (networks_of(watched[f"{kind}_soup"]) for kind in ("uniform", "greedy"))
    for weights, others in zip(one, other, strict=True):
        assert_same_weights(weights, others)


def test_networks_are_trained_once_for_both_soups(
    inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    taken = steps_taken(monkeypatch)
    found_by("uniform_soup")
    assert len(taken) == 6 * MEMBERS
    found_by("greedy_soup")
    assert len(taken) == 6 * MEMBERS


def test_denoisers_are_sparse_networks_of_the_pretrained_weights(inside, watched) -> None:
    found = watched["instant_model_soup"].networks
    start, _ = load_start(START)
    assert len(found) == 2
    for sparsity, (_, weights, mask, cost) in zip((0.2, 0.6), found, strict=True):
        assert masks.sparsity(mask) == pytest.approx(sparsity, abs=1e-4)
        assert same(mask, scores.magnitude(prunable(start), sparsity))
        assert all(not weights[name][~kept].any() for name, kept in mask.items())
        assert (cost.steps, cost.search_steps) == (0, 3)


def test_the_uniform_soup_is_the_mean_of_its_networks(inside, watched) -> None:
    networks = networks_of(watched["uniform_soup"])
    assert_same_weights(weights_in("models/retrained/uniform_soup"), soups.uniform_soup(networks))


def test_the_greedy_soup_is_not_below_its_best_network(inside, watched) -> None:
    networks = networks_of(watched["greedy_soup"])
    found = weights_in("models/retrained/greedy_soup")
    assert score(found) >= max(score(weights) for weights in networks)
    told = read_json(Path("models/retrained/greedy_soup/run.json"))
    assert_same_weights(found, soups.uniform_soup([networks[i] for i in told["members"]]))


@pytest.mark.parametrize("method", ["uniform_soup", "greedy_soup"])
def test_a_soup_tells_its_score_and_is_not_trained_on(inside, method: str) -> None:
    found = weights_in(f"models/retrained/{method}")
    told = read_json(Path(f"models/retrained/{method}/run.json"))
    assert told["validation"] == score(found)
    state, mask, cost, _, _ = load_ticket(f"models/tickets/{method}/found", START)
    assert state.step == 6 and masks.sparsity(mask) == 0
    assert_same_weights(state.weights, found)
    assert cost.steps == 0


def test_instant_model_soup_begins_no_worse_and_is_fine_tuned(inside, watched) -> None:
    current, mask = load_start(START)
    best = score(current.weights)
    taken = read_json(Path("models/retrained/instant_model_soup/run.json"))["coefficients"]
    assert len(taken) == 2
    others = networks_of(watched["instant_model_soup"])
    for other, share in zip(others, taken, strict=True):
        current.weights = soups.interpolate(current.weights, other, share)
        assert score(current.weights) >= best
        best = score(current.weights)
    assert_same_weights(watched["instant_model_soup"].state.weights, current.weights)
    # From there it is the plain run.
    expected = trained(current, mask, recipe(), 6)
    assert_same_weights(weights_in("models/retrained/instant_model_soup"), expected.weights)


def test_costs_are_those_of_the_parts_and_of_looking_at_validation_data(inside, watched) -> None:
    full = [cost for _, _, _, cost in watched["uniform_soup"].networks]
    uniform, greedy = (cost_in(f"models/retrained/{m}_soup") for m in ("uniform", "greedy"))
    assert (uniform["steps"], uniform["search_steps"]) == (0, 6 * MEMBERS)
    assert (greedy["steps"], greedy["search_steps"]) == (0, 6 * MEMBERS)
    assert greedy["flops"] > uniform["flops"] > sum(cost.flops for cost in full)
    instant = cost_in("models/retrained/instant_model_soup")
    assert (instant["steps"], instant["search_steps"]) == (6, 2 * 3)


@pytest.mark.parametrize("method", SOUPS)
def test_a_soup_is_evaluated_as_a_dense_row(inside, method: str) -> None:
    run_script("evaluate", "--method", method)
    result = read_json(f"reports/results/{method}.json")
    assert (result["target_sparsity"], result["sparsity"], result["pruned_weights"]) == (0, 0, 0)
    assert 0 <= result["test"]["accuracy"] <= 1
