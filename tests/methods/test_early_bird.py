"""Tickets found early in training: EarlyBird, progressive pruning, and the stages around them."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from instant_soup.methods.criteria import CRITERIA, Probe
from instant_soup.pipeline.main_network import Ticket
from torch.utils.flop_counter import FlopCounterMode

from helpers import (
    FakeRun,
    assert_same,
    bits,
    copied,
    interrupt_at,
    make_project,
    prunable,
    run_script,
    same,
    trained,
)
from instant_soup.data import batches
from instant_soup.files import read_json, read_yaml, write_json
from instant_soup.methods import criteria
from instant_soup.methods.early_bird import early_bird
from instant_soup.methods.progressive import progressive
from instant_soup.models import base as models
from instant_soup.models import clip
from instant_soup.pipeline import main_network
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.state import State, load_state

Search = Callable[..., Ticket]

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

# Ten steps an epoch: T = 20; EarlyBird looks every 2 steps; rounds of 1, 2 and 3 steps.
PARAMS: dict[str, Any] = {
    "sparsity": 0.6,
    "seed": 3,
    "baselines": ["one_shot", "snip", "grasp", "early_bird", "progressive", "isp_plus"],
    "controls": ["random_init"],
    "training": {
        "epochs": 2,
        "batch_size": 16,
        "precision": "fp32",
        "learning_rate": 2e-3,
        "dropout": 0.1,
    },
    "isp": {"compression_rate": 0.2, "calibration": 0.1, "denoisers": 0},
    "criteria": {"batches": 3},
    "early_bird": {"every": 0.2, "window": 2, "threshold": 0.05},
}


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project of a tiny BERT, up to models/start."""
    return make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)


@pytest.fixture
def checkpoints(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the project, with checkpoints of this test's own; returns their folder."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".dvc/tmp/instant-soup/checkpoints"


def search_plan(method: str, **changes: Any) -> dict:
    """The resolved settings of a search, with changes."""
    return {**read_yaml(f"models/plan/ticket_{method}.yaml"), **changes}


# EarlyBird


@pytest.fixture(scope="module")
def settling(project: Path) -> list[Mask]:
    """The dense run's magnitude masks after 2, 4, … 20 steps, by the bare engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        plan = search_plan("early_bird")
        state, mask = main_network.load_start("models/start")
        found = []
        for last in range(2, 21, 2):
            state = trained(state, mask, plan, last)
            found.append(criteria.magnitude(prunable(state), plan["sparsity"]))
    return found


def farthest(found: list[Mask], i: int, window: int) -> float:
    """The largest distance of a mask from the `window` masks before it."""
    return max(masks.distance(found[i], found[j]) for j in range(i - window, i))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_mask_is_drawn_once_it_is_close_to_the_window_before(
    checkpoints: Path, settling: list[Mask], window: int
) -> None:
    # A threshold that some distances on the way pass and others do not.
    ahead = {i: farthest(settling, i, window) for i in range(window, 10)}
    threshold = sorted(ahead.values())[2] + 1e-9
    expected = min(i for i, distance in ahead.items() if distance < threshold)
    assert window < expected < 9
    plan = search_plan("early_bird", window=window, threshold=threshold)
    ticket = early_bird(plan, FakeRun())
    assert same(ticket.mask, settling[expected])
    step = 2 * (expected + 1)
    assert ticket.drawn == {
        "step": step,
        "epoch": step / 10,
        "distance": ahead[expected],
        "settled": True,
    }
    assert (ticket.cost.search_steps, ticket.cost.steps) == (step, 0)
    assert ticket.state is None and ticket.curve == []


@pytest.mark.parametrize("window", [1, 3])
def test_no_mask_is_drawn_before_the_window_is_full(
    checkpoints: Path, settling: list[Mask], window: int
) -> None:
    ticket = early_bird(search_plan("early_bird", window=window, threshold=1.0), FakeRun())
    assert ticket.drawn["step"] == ticket.cost.search_steps == 2 * (window + 1)
    assert ticket.drawn["settled"] and same(ticket.mask, settling[window])


def test_a_mask_that_never_settles_is_the_last_of_the_budget(
    checkpoints: Path, settling: list[Mask]
) -> None:
    ticket = early_bird(search_plan("early_bird", threshold=1e-9), FakeRun())
    assert ticket.drawn["step"] == ticket.cost.search_steps == 20
    assert ticket.drawn["settled"] is False
    assert ticket.drawn["distance"] == farthest(settling, 9, 2)
    assert same(ticket.mask, settling[-1])


@pytest.mark.parametrize(("every", "steps"), [(0.7, [7, 14, 20]), (1.0, [10, 20]), (5.0, [20])])
def test_the_search_ends_with_the_budget_whatever_the_interval(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, every: float, steps: list[int]
) -> None:
    seen, magnitude = [], criteria.magnitude

    def counted(weights: dict, sparsity: float) -> Mask:
        seen.append(sparsity)
        return magnitude(weights, sparsity)

    monkeypatch.setattr(criteria, "magnitude", counted)
    plan = search_plan("early_bird", every=every, window=9, threshold=1.0)
    ticket = early_bird(plan, FakeRun())
    assert seen == [0.6] * len(steps)
    assert (ticket.drawn["step"], ticket.drawn["settled"]) == (20, False)
    assert ticket.cost.search_steps == 20


def test_the_search_costs_what_dense_training_costs(checkpoints: Path) -> None:
    plan = search_plan("early_bird", threshold=1.0)
    ticket = early_bird(plan, FakeRun())
    state, mask = main_network.load_start("models/start")
    _, cost, _ = main_network.advance(state, mask, plan, last=6, label="dense", run=FakeRun())
    assert ticket.cost.flops == ticket.cost.sparse_flops == pytest.approx(cost.flops)
    assert ticket.cost.peak_memory > 0 < ticket.cost.seconds


# Searches that are interrupted


@pytest.mark.parametrize(
    ("search", "changes", "steps"),
    [(early_bird, {"threshold": 1.0, "window": 4}, 10), (progressive, {}, 6)],
)
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_an_interrupted_search_goes_on_to_the_very_same_ticket(
    checkpoints: Path, monkeypatch, search: Search, changes: dict, steps: int, stop: int
) -> None:
    plan = search_plan(search.__name__, **changes)
    whole = search(plan, FakeRun())
    for folder in whole.checkpoints:  # not to be taken up below
        folder.rename(folder.with_suffix(".done"))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(stop, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        search(plan, FakeRun())
    taken = taken_steps(monkeypatch)
    resumed = search(plan, FakeRun())
    assert len(taken) == steps - stop
    assert same(resumed.mask, whole.mask) and resumed.drawn == whole.drawn
    assert resumed.curve == whole.curve
    for part in ("steps", "search_steps", "flops", "sparse_flops"):
        assert getattr(resumed.cost, part) == pytest.approx(getattr(whole.cost, part))
    if whole.state is not None:
        assert resumed.state is not None
        assert_same(resumed.state, whole.state)
    assert sorted(p.name for p in resumed.checkpoints) == sorted(p.name for p in whole.checkpoints)


def taken_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every training step from now on."""
    loss_of, taken = loop.loss_of, []

    def counted(*given: Any) -> torch.Tensor:
        taken.append(1)
        return loss_of(*given)

    monkeypatch.setattr(loop, "loss_of", counted)
    return taken


@pytest.mark.parametrize("search", [early_bird, progressive])
def test_a_search_that_was_stopped_after_its_last_step_trains_no_more(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, search: Search
) -> None:
    """A crash between the search and its file."""
    plan = search_plan(search.__name__, **{"threshold": 1.0})
    one = search(plan, FakeRun())
    taken = taken_steps(monkeypatch)
    other = search(plan, FakeRun())
    assert taken == [] and same(one.mask, other.mask) and one.drawn == other.drawn
    assert (other.cost.steps, other.cost.search_steps) == (one.cost.steps, one.cost.search_steps)


@pytest.mark.parametrize("search", [early_bird, progressive])
def test_a_saved_ticket_leaves_no_checkpoints(
    checkpoints: Path, tmp_path: Path, search: Search
) -> None:
    ticket = search(search_plan(search.__name__), FakeRun())
    assert set(checkpoints.iterdir()) == set(ticket.checkpoints)
    assert len(ticket.checkpoints) >= 3
    main_network.save_ticket(tmp_path / "ticket", ticket, method=search.__name__)
    assert list(checkpoints.iterdir()) == []
    state, back = main_network.load_ticket(tmp_path / "ticket", "models/start")
    assert same(back.mask, ticket.mask)
    assert (back.cost, back.drawn, back.curve) == (ticket.cost, ticket.drawn, ticket.curve)
    expected = ticket.state or main_network.load_start("models/start")[0]
    expected.prune(ticket.mask)
    assert_same(state, expected)


# Progressive pruning


def by_hand(plan: dict) -> tuple[State, Mask, list[Mask]]:
    """Algorithm 1 with the network's own masks, by the bare engine."""
    state, mask = main_network.load_start("models/start")
    rounds = []
    for steps, sparsity in zip((1, 2, 3), (0.2, 0.4, 0.6), strict=True):
        state = trained(state, mask, plan, state.step + steps)
        scores = {
            name: w.square() * state.second_moments[name] if plan["score"] == "fisher" else w.abs()
            for name, w in prunable(state).items()
        }
        mask = masks.keep_largest(scores, masks.keep_count(scores, sparsity))
        state.prune(mask)
        rounds.append(mask)
    return state, mask, rounds


@pytest.mark.parametrize("method", ["progressive", "isp_plus"])
def test_pruning_on_the_way_is_algorithm_1_with_the_networks_own_masks(
    checkpoints: Path, method: str
) -> None:
    plan = search_plan(method)
    assert plan["sparsities"] == [0.2, 0.4, 0.6]
    ticket = progressive(plan, FakeRun())
    state, mask, _ = by_hand(plan)
    assert same(ticket.mask, mask)
    assert ticket.state is not None
    assert_same(ticket.state, state)
    assert ticket.state.step == ticket.cost.steps == 6
    assert ticket.cost.search_steps == 0 and ticket.drawn == {}
    assert [row["step"] for row in ticket.curve if row["train_loss"] is None] == [1, 3]


@pytest.mark.parametrize("method", ["progressive", "isp_plus"])
def test_progressive_masks_are_nested_and_exact(checkpoints: Path, method: str) -> None:
    plan = search_plan(method)
    tickets = [
        progressive({**plan, "sparsities": plan["sparsities"][:rounds]}, FakeRun())
        for rounds in (1, 2, 3)
    ]
    for ticket, expected in zip(tickets, by_hand(plan)[2], strict=True):
        assert same(ticket.mask, expected)
    for sparsity, ticket in zip(plan["sparsities"], tickets, strict=True):
        kept, total = masks.count(ticket.mask)
        assert total - kept == round(sparsity * total)
    for before, after in itertools.pairwise(tickets):
        assert all(not (after.mask[n] & ~kept).any() for n, kept in before.mask.items())


@pytest.mark.parametrize("method", ["progressive", "isp_plus"])
def test_what_pruning_on_the_way_takes_away_is_zero_in_moments_too(
    checkpoints: Path, method: str
) -> None:
    ticket = progressive(search_plan(method), FakeRun())
    state = ticket.state
    assert state is not None
    for name, kept in ticket.mask.items():
        for tensors in (state.weights, state.first_moments, state.second_moments):
            assert not bits(tensors[name])[~kept].any(), name
            assert tensors[name][kept].all(), name


# The stages


def test_progressive_is_isp_without_denoisers_to_the_end_of_the_budget(checkpoints: Path) -> None:
    for i in range(4):  # the last is listed, but not needed
        run_script("calibrate", "--round", i)
        run_script("mask_soup", "--round", i)
    run_script("sparse_retrain", "--method", "isp")
    run_script("find_ticket", "--method", "progressive")
    run_script("sparse_retrain", "--method", "progressive")
    isp, own = (Path(f"models/retrained/{method}") for method in ("isp", "progressive"))
    one, other = (load_state(f / "state", moments=False) for f in (isp, own))
    assert_same(one, other)
    assert one.step == 20
    assert same(masks.load(isp / "mask.safetensors"), masks.load(own / "mask.safetensors"))
    costs = [read_json(folder / "run.json")["cost"] for folder in (isp, own)]
    assert costs[0]["steps"] == costs[1]["steps"] == 20
    assert costs[0]["sparse_flops"] == pytest.approx(costs[1]["sparse_flops"])
    assert (isp / "curve.csv").read_text() == (own / "curve.csv").read_text()
    assert list(checkpoints.iterdir()) == []

    run_script("sparse_retrain", "--method", "random_init")
    control = Path("models/retrained/random_init")
    assert same(masks.load(isp / "mask.safetensors"), masks.load(control / "mask.safetensors"))
    state, mask = main_network.load_start("models/isp/round_2")
    plan = read_yaml("models/plan/retrain_random_init.yaml")
    state = main_network.random_state(plan)
    state.prune(mask)
    final = load_state(control / "state", moments=False).weights
    expected = trained(state, mask, plan, 20).weights
    assert all(torch.equal(bits(final[n]), bits(w)) for n, w in expected.items())
    assert read_json(control / "run.json")["cost"]["steps"] == 20


def test_an_early_bird_is_trained_from_the_start_for_the_whole_budget(
    checkpoints: Path, settling: list[Mask]
) -> None:
    plan = search_plan("early_bird")
    run_script("find_ticket", "--method", "early_bird")
    run_script("sparse_retrain", "--method", "early_bird")
    assert list(checkpoints.iterdir()) == []
    folder = Path("models/retrained/early_bird")
    mask = masks.load(folder / "mask.safetensors")
    drawn = next(i for i in range(2, 10) if farthest(settling, i, 2) < plan["threshold"])
    assert drawn < 9 and same(mask, settling[drawn])

    state, full = main_network.load_start("models/start")
    search, own = Cost(), Cost()
    trained(state, full, plan, 2 * (drawn + 1), search)
    state.prune(mask)
    expected = trained(state, mask, plan, 20, own).weights
    final = load_state(folder / "state", moments=False).weights
    assert all(torch.equal(bits(final[n]), bits(w)) for n, w in expected.items())
    run = read_json(folder / "run.json")
    assert run["drawn"]["step"] == run["cost"]["search_steps"] == 2 * (drawn + 1)
    assert run["drawn"]["settled"] is True and run["cost"]["steps"] == 20
    assert run["cost"]["flops"] == pytest.approx(search.flops + own.flops)
    assert run["cost"]["sparse_flops"] == pytest.approx(search.flops + own.sparse_flops)


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_a_gradient_ticket_looks_at_the_first_batches_of_training(
    checkpoints: Path, method: str
) -> None:
    run_script("find_ticket", "--method", method)
    state, ticket = main_network.load_ticket(f"models/tickets/{method}", "models/start")
    assert (ticket.cost.steps, ticket.cost.search_steps) == (0, 0)
    plan = read_yaml(f"models/plan/ticket_{method}.yaml")
    data = batches.load_split(main_network.ENCODED / "train.safetensors", torch.device("cpu"))
    first = [batch for _, batch in batches.training_batches(data, plan, 0, 3)]
    start, _ = main_network.load_start("models/start")
    model = main_network.build(copied(start), plan)
    with FlopCounterMode(display=False) as counter:
        expected = CRITERIA[method](prunable(start), 0.6, Probe(model=model, batches=first))
    # The formula takes every gradient for two passes; the first layer's inputs need none.
    assert ticket.cost.flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert same(ticket.mask, expected)
    assert state.step == 0
    start.prune(expected)
    assert_same(state, start)


# Random weights


def test_random_weights_come_from_the_seed_and_the_head_is_that_of_every_run(
    checkpoints: Path,
) -> None:
    plan = read_yaml("models/plan/retrain_random_init.yaml")
    torch.manual_seed(99)  # the global generator has no say
    one = main_network.random_state(plan)
    start, _ = main_network.load_start("models/start")
    assert one.step == 0 and one.first_moments == {}
    assert {n: w.shape for n, w in one.weights.items()} == {
        n: w.shape for n, w in start.weights.items()
    }
    for name, weight in prunable(one).items():
        assert (weight != start.weights[name]).float().mean() > 0.99, name
        assert weight.std() == pytest.approx(0.02, rel=0.2)  # as BERT is initialised
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(one.weights[name], start.weights[name])
    assert_same(one, main_network.random_state(plan))
    other = main_network.random_state({**plan, "seed": 4})
    assert all(not torch.equal(w, other.weights[n]) for n, w in prunable(one).items())


def test_a_random_image_tower_keeps_the_zero_shot_head(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main_network.BASE.mkdir(parents=True)
    found = clip.prepare_base({"source": "local", "path": str(tiny_clip)}, main_network.BASE)
    shapes = {name: list(weight.shape) for name, weight in found.items()}
    write_json(main_network.BASE / "prunable.json", shapes)
    write_json(main_network.ENCODED / "info.json", {"outputs": 2})
    plan = {"seed": 5, "classes": ["zero", "one"], "templates": ["a photo of {}."]}
    one, again = main_network.random_state(plan), main_network.random_state(plan)
    other = main_network.random_state({**plan, "seed": 6})
    start = clip.start_weights(main_network.BASE, plan)
    assert {n: w.shape for n, w in one.weights.items()} == {n: w.shape for n, w in start.items()}
    for name in shapes:
        assert not torch.equal(one.weights[name], start[name]), name
        assert not torch.equal(one.weights[name], other.weights[name]), name
        assert one.weights[name].std() > 0
    assert torch.equal(one.weights["head"], start["head"])
    assert torch.equal(other.weights["head"], start["head"])
    assert_same(one, again)
    assert models.pretrained_prunable(main_network.BASE).keys() == shapes.keys()
    main_network.build(one, {})  # takes them as they are
