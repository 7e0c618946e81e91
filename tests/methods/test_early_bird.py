"""Tickets found early in training: EarlyBird, progressive pruning, and the stages around them."""

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import (
    BareRun,
    assert_same,
    bits,
    found_by,
    interrupt_at,
    make_project,
    prunable,
    run_isp,
    run_row,
    run_script,
    same,
    steps_taken,
    trained,
    training_for,
    work_in,
)
from instant_soup.config.sections import Recipe
from instant_soup.data import batches
from instant_soup.files import read_json, write_json
from instant_soup.models import base as models
from instant_soup.models import clip
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel
from instant_soup.pipeline.run import PipelineRun, build
from instant_soup.pipeline.stage_files import RetrainStage, TicketStage
from instant_soup.pipeline.workspace import (
    BASE,
    ENCODED,
    START,
    load_start,
    load_ticket,
    outputs,
    save_ticket,
)
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training.cost import Cost
from instant_soup.training.state import State, load_state

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

# Ten steps an epoch: T = 20; EarlyBird looks every 2 steps; rounds of 1, 2 and 3 steps.
PARAMS: dict[str, Any] = {
    "sparsity": 0.6,
    "seed": 3,
    "methods": ["snip", "grasp", "early_bird", "progressive", "isp_plus", "random_init"],
    "training": training_for(2),
    "isp": {"compression_rate": 0.2, "calibration": 0.1, "denoisers": 0},
    "criteria": {"batches": 3},
    "early_bird": {"every": 0.2, "window": 2, "threshold": 0.05},
}


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project of a tiny BERT, up to models/start."""
    return make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)


@pytest.fixture
def store(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the project, with a store of this test's own; returns its folder."""
    return work_in(project, tmp_path, monkeypatch)


def entries(store: Path) -> set[str]:
    """What a store holds."""
    return {path.name for path in store.iterdir() if path.is_dir()}


def recipe_of(method: str) -> Recipe:
    """The settings of training that a planned search depends on."""
    recipe = TicketStage.read(f"models/plan/ticket_{method}.yaml").recipe
    assert recipe is not None
    return recipe


# EarlyBird


@pytest.fixture(scope="module")
def settling(project: Path) -> list[Mask]:
    """The dense run's magnitude masks after 2, 4, … 20 steps, by the bare engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        state, mask = load_start(START)
        found = []
        for last in range(2, 21, 2):
            state = trained(state, mask, recipe_of("early_bird"), last)
            found.append(scores.magnitude(prunable(state), 0.6))
    return found


def farthest(found: list[Mask], i: int, window: int) -> float:
    """The largest distance of a mask from the `window` masks before it."""
    return max(masks.distance(found[i], found[j]) for j in range(i - window, i))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_mask_is_drawn_once_it_is_close_to_the_window_before(
    store: Path, settling: list[Mask], window: int
) -> None:
    # A threshold that some distances on the way pass and others do not.
    ahead = {i: farthest(settling, i, window) for i in range(window, 10)}
    threshold = sorted(ahead.values())[2] + 1e-9
    expected = min(i for i, distance in ahead.items() if distance < threshold)
    assert window < expected < 9
    run = found_by("early_bird", window=window, threshold=threshold)
    assert same(run.mask, settling[expected])
    step = 2 * (expected + 1)
    assert run.found["drawn"] == {
        "step": step,
        "epoch": step / 10,
        "distance": ahead[expected],
        "settled": True,
    }
    assert (run.cost.search_steps, run.cost.steps) == (step, 0)
    start, _ = load_start(START)
    start.prune(run.mask)
    assert_same(run.state, start)
    assert run.curve == []


@pytest.mark.parametrize("window", [1, 3])
def test_no_mask_is_drawn_before_the_window_is_full(
    store: Path, settling: list[Mask], window: int
) -> None:
    run = found_by("early_bird", window=window, threshold=1.0)
    assert run.found["drawn"]["step"] == run.cost.search_steps == 2 * (window + 1)
    assert run.found["drawn"]["settled"] and same(run.mask, settling[window])


def test_a_mask_that_never_settles_is_the_last_of_the_budget(
    store: Path, settling: list[Mask]
) -> None:
    with pytest.warns(UserWarning, match=r"^early_bird: the mask did not settle in 20 steps"):
        run = found_by("early_bird", threshold=1e-9)
    drawn = run.found["drawn"]
    assert drawn["step"] == run.cost.search_steps == 20
    assert drawn["settled"] is False
    assert drawn["distance"] == farthest(settling, 9, 2)
    assert same(run.mask, settling[-1])


@pytest.mark.parametrize(("every", "steps"), [(0.7, [7, 14, 20]), (1.0, [10, 20]), (5.0, [20])])
def test_the_search_ends_with_the_budget_whatever_the_interval(
    store: Path, monkeypatch: pytest.MonkeyPatch, every: float, steps: list[int]
) -> None:
    seen, magnitude = [], scores.magnitude

    def counted(weights: dict, sparsity: float) -> Mask:
        seen.append(sparsity)
        return magnitude(weights, sparsity)

    monkeypatch.setattr(scores, "magnitude", counted)
    run = found_by("early_bird", every=every, window=9, threshold=1.0)
    assert seen == [0.6] * len(steps)
    assert (run.found["drawn"]["step"], run.found["drawn"]["settled"]) == (20, False)
    assert run.cost.search_steps == 20


def test_the_search_costs_what_dense_training_costs(store: Path) -> None:
    run, cost = found_by("early_bird", threshold=1.0), Cost()
    trained(*load_start(START), recipe_of("early_bird"), 6, cost)
    assert run.cost.flops == run.cost.sparse_flops == pytest.approx(cost.flops)
    assert run.cost.peak_memory > 0 < run.cost.seconds


# Searches that are interrupted


INTERRUPTED: dict[str, dict[str, Any]] = {
    "early_bird": {"threshold": 1.0, "window": 4},
    "progressive": {},
}


@pytest.fixture(scope="module")
def uninterrupted(project: Path, tmp_path_factory: Any) -> dict[str, tuple[PipelineRun, set[str]]]:
    """Method → its search without a stop, and what a store of its own holds then."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for method, changes in INTERRUPTED.items():
            store = work_in(project, tmp_path_factory.mktemp(method), patch)
            found[method] = found_by(method, **changes), entries(store)
    return found


@pytest.mark.parametrize(("method", "steps"), [("early_bird", 10), ("progressive", 6)])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_an_interrupted_search_goes_on_to_the_very_same_ticket(
    store: Path, uninterrupted: dict, monkeypatch: Any, method: str, steps: int, stop: int
) -> None:
    (whole, held), changes = uninterrupted[method], INTERRUPTED[method]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(stop, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        found_by(method, **changes)
    taken = steps_taken(monkeypatch)
    resumed = found_by(method, **changes)
    assert len(taken) == steps - stop
    assert same(resumed.mask, whole.mask) and resumed.found == whole.found
    assert resumed.curve == whole.curve
    for part in ("steps", "search_steps", "flops", "sparse_flops"):
        assert getattr(resumed.cost, part) == pytest.approx(getattr(whole.cost, part))
    assert_same(resumed.state, whole.state)
    assert entries(store) == held


@pytest.mark.parametrize("method", ["early_bird", "progressive", "isp_plus"])
def test_a_search_that_was_stopped_after_its_last_step_trains_no_more(
    store: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A crash between the search and its file."""
    one = found_by(method)
    taken = steps_taken(monkeypatch)
    other = found_by(method)
    assert taken == [] and same(one.mask, other.mask) and one.found == other.found
    assert_same(one.state, other.state)
    assert one.curve == other.curve
    assert (other.cost.steps, other.cost.search_steps) == (one.cost.steps, one.cost.search_steps)


@pytest.mark.parametrize("method", ["early_bird", "progressive", "isp_plus"])
def test_a_saved_ticket_comes_back_as_it_was(store: Path, tmp_path: Path, method: str) -> None:
    run = found_by(method)
    save_ticket(tmp_path / "ticket", run, method=method)
    state, mask, cost, curve, found = load_ticket(tmp_path / "ticket", START)
    assert same(mask, run.mask)
    assert (cost, found, curve) == (run.cost, run.found, run.curve)
    assert_same(state, run.state)
    # A state only where training does not begin at the start again.
    assert (tmp_path / "ticket/state").exists() == (method != "early_bird")


@pytest.mark.parametrize("method", ["early_bird", "progressive"])
def test_what_a_row_has_searched_is_kept_and_its_training_is_not(store: Path, method: str) -> None:
    """The search is worth something to another sparsity; the result lies in the row's folder."""
    run_script("find_ticket", "--method", method)
    kept = entries(store)
    assert len(kept) >= 3
    run_script("sparse_retrain", "--method", method)
    assert entries(store) == kept


# Progressive pruning


def by_hand(method: str) -> tuple[State, Mask, list[Mask]]:
    """Algorithm 1 with the network's own masks, by the bare engine."""
    state, mask = load_start(START)
    rounds = []
    for steps, sparsity in zip((1, 2, 3), (0.2, 0.4, 0.6), strict=True):
        state = trained(state, mask, recipe_of(method), state.step + steps)
        worth = {
            name: w.square() * state.second_moments[name] if method == "isp_plus" else w.abs()
            for name, w in prunable(state).items()
        }
        mask = masks.keep_largest(worth, masks.keep_count(worth, sparsity))
        state.prune(mask)
        rounds.append(mask)
    return state, mask, rounds


@pytest.mark.parametrize("method", ["progressive", "isp_plus"])
def test_pruning_on_the_way_is_algorithm_1_with_the_networks_own_masks(
    store: Path, method: str
) -> None:
    stage = TicketStage.read(f"models/plan/ticket_{method}.yaml")
    assert stage.build().sparsities(stage.sparsity) == [0.2, 0.4, 0.6]
    run = found_by(method)
    state, mask, _ = by_hand(method)
    assert same(run.mask, mask)
    assert_same(run.state, state)
    assert run.state.step == run.cost.steps == 6
    assert run.cost.search_steps == 0 and run.found == {}
    assert [row["step"] for row in run.curve if row["train_loss"] is None] == [1, 3]


@pytest.mark.parametrize("method", ["progressive", "isp_plus"])
def test_progressive_masks_are_nested_and_exact(store: Path, method: str) -> None:
    found = [found_by(method, sparsity).mask for sparsity in (0.2, 0.4, 0.6)]
    for mask, expected in zip(found, by_hand(method)[2], strict=True):
        assert same(mask, expected)
    for sparsity, mask in zip((0.2, 0.4, 0.6), found, strict=True):
        kept, total = masks.count(mask)
        assert total - kept == round(sparsity * total)
    for before, after in itertools.pairwise(found):
        assert all(not (after[n] & ~kept).any() for n, kept in before.items())


@pytest.mark.parametrize("method", ["progressive", "isp_plus"])
def test_what_pruning_on_the_way_takes_away_is_zero_in_moments_too(
    store: Path, method: str
) -> None:
    run = found_by(method)
    state = run.state
    for name, kept in run.mask.items():
        for tensors in (state.weights, state.first_moments, state.second_moments):
            assert not bits(tensors[name])[~kept].any(), name
            assert tensors[name][kept].all(), name


# The stages


def test_progressive_is_isp_without_denoisers_to_the_end_of_the_budget(store: Path) -> None:
    run_isp(rounds=4)  # the last is listed, but not needed
    assert not store.exists() or entries(store) == set()
    run_row("progressive")
    isp, own = (Path(f"models/retrained/{method}") for method in ("isp", "progressive"))
    one, other = (load_state(f / "state", moments=False) for f in (isp, own))
    assert_same(one, other)
    assert one.step == 20
    assert same(masks.load(isp / "mask.safetensors"), masks.load(own / "mask.safetensors"))
    costs = [read_json(folder / "run.json")["cost"] for folder in (isp, own)]
    assert costs[0]["steps"] == costs[1]["steps"] == 20
    assert costs[0]["sparse_flops"] == pytest.approx(costs[1]["sparse_flops"])
    assert (isp / "curve.csv").read_text() == (own / "curve.csv").read_text()

    run_row("random_init")
    control = Path("models/retrained/random_init")
    assert same(masks.load(isp / "mask.safetensors"), masks.load(control / "mask.safetensors"))
    _, mask = load_start("models/isp/round_2")
    state = randomly()
    state.prune(mask)
    final = load_state(control / "state", moments=False).weights
    stage = RetrainStage.read("models/plan/retrain_random_init.yaml")
    assert stage.recipe == replace(recipe_of("progressive"), freeze_embeddings=False)
    expected = trained(state, mask, stage.recipe, 20).weights
    assert all(torch.equal(bits(final[n]), bits(w)) for n, w in expected.items())
    cost = read_json(control / "run.json")["cost"]
    assert (cost["steps"], cost["search_steps"]) == (20, 6)  # of ISP's rounds


def test_an_early_bird_is_trained_from_the_start_for_the_whole_budget(
    store: Path, settling: list[Mask]
) -> None:
    run_row("early_bird")
    folder = Path("models/retrained/early_bird")
    mask = masks.load(folder / "mask.safetensors")
    drawn = next(i for i in range(2, 10) if farthest(settling, i, 2) < 0.05)
    assert drawn < 9 and same(mask, settling[drawn])

    (state, full), recipe = load_start(START), recipe_of("early_bird")
    search, own = Cost(), Cost()
    trained(state, full, recipe, 2 * (drawn + 1), search)
    state.prune(mask)
    expected = trained(state, mask, recipe, 20, own).weights
    final = load_state(folder / "state", moments=False).weights
    assert all(torch.equal(bits(final[n]), bits(w)) for n, w in expected.items())
    run = read_json(folder / "run.json")
    assert run["drawn"]["step"] == run["cost"]["search_steps"] == 2 * (drawn + 1)
    assert run["drawn"]["settled"] is True and run["cost"]["steps"] == 20
    assert run["cost"]["flops"] == pytest.approx(search.flops + own.flops)
    assert run["cost"]["sparse_flops"] == pytest.approx(search.flops + own.sparse_flops)


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_a_gradient_ticket_looks_at_the_first_batches_of_training(store: Path, method: str) -> None:
    run_script("find_ticket", "--method", method)
    state, mask, cost, _, _ = load_ticket(f"models/tickets/{method}/found", START)
    assert (cost.steps, cost.search_steps) == (0, 0)
    stage, recipe = TicketStage.read(f"models/plan/ticket_{method}.yaml"), recipe_of(method)
    assert stage.settings == {"batches": 3}
    data = batches.load_split(ENCODED / "train.safetensors", torch.device("cpu"))
    first = [batch for _, batch in batches.training_batches(data, recipe, 0, 3)]
    start, _ = load_start(START)
    bare = BareRun(prunable(start), network=build(start.copy(), recipe), batches=first)
    with FlopCounterMode(display=False) as counter:
        expected = stage.build().mask(bare, 0.6)
    # The formula takes every gradient for two passes; the first layer's inputs need none.
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert same(mask, expected)
    assert state.step == 0
    start.prune(expected)
    assert_same(state, start)


# Random weights


def randomly(seed: int | None = None) -> State:
    """Random weights as the control's stage draws them."""
    stage = TicketStage.read("models/plan/ticket_random_init.yaml")
    assert stage.head is not None
    run = PipelineRun(*load_start(START), recipe_of("progressive"))
    run.head = replace(stage.head, outputs=outputs())
    if seed is not None:
        run.head = replace(run.head, seed=seed)
    return run.random_state()


def test_random_weights_come_from_the_seed_and_the_head_is_that_of_every_run(store: Path) -> None:
    torch.manual_seed(99)  # the global generator has no say
    one = randomly()
    start, _ = load_start(START)
    assert one.step == 0 and one.first_moments == {}
    assert {n: w.shape for n, w in one.weights.items()} == {
        n: w.shape for n, w in start.weights.items()
    }
    for name, weight in prunable(one).items():
        assert (weight != start.weights[name]).float().mean() > 0.99, name
        assert weight.std() == pytest.approx(0.02, rel=0.2)  # as BERT is initialised
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(one.weights[name], start.weights[name])
    assert_same(one, randomly())
    other = randomly(seed=4)
    assert all(not torch.equal(w, other.weights[n]) for n, w in prunable(one).items())


def test_a_random_image_tower_keeps_the_zero_shot_head(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    BASE.mkdir(parents=True)
    model = BaseModel("local:tiny", "clip", "local", path=str(tiny_clip))
    found = clip.prepare_base(model, BASE)
    shapes = {name: list(weight.shape) for name, weight in found.items()}
    write_json(BASE / "prunable.json", shapes)
    write_json(ENCODED / "info.json", {"outputs": 2})
    head = Head(seed=5, classes=["zero", "one"], templates=["a photo of {}."])
    draw = models.family(BASE).random_weights
    one, again = State(draw(BASE, head)), State(draw(BASE, head))
    other = State(draw(BASE, replace(head, seed=6)))
    start = clip.start_weights(BASE, head)
    assert {n: w.shape for n, w in one.weights.items()} == {n: w.shape for n, w in start.items()}
    for name in shapes:
        assert not torch.equal(one.weights[name], start[name]), name
        assert not torch.equal(one.weights[name], other.weights[name]), name
        assert one.weights[name].std() > 0
    assert torch.equal(one.weights["head"], start["head"])
    assert torch.equal(other.weights["head"], start["head"])
    assert_same(one, again)
    assert models.pretrained_prunable(BASE).keys() == shapes.keys()
    build(one, Recipe(epochs=1.0))  # takes them as they are
