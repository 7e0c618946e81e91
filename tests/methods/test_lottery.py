"""Lottery tickets: IMP's rounds by the stages' own scripts, and the pool that is mixed of them."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instant_soup.methods.dense_soups import interpolate
from torch.utils.flop_counter import FlopCounterMode

from helpers import (
    assert_same,
    assert_same_weights,
    copied,
    cost_in,
    make_project,
    prunable,
    run_script,
    same,
    state_in,
    trained,
)
from instant_soup.data import batches
from instant_soup.files import read_json, read_yaml
from instant_soup.methods import criteria, lottery_pool
from instant_soup.methods.lottery_pool import pruned_to
from instant_soup.pipeline import main_network
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training import loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.state import State, Weights

LAW = settings(deadline=None, max_examples=100)
COEFFICIENTS = [0.1, 0.3, 0.5, 0.7, 0.9]
SPARSITIES = [0.25, 0.5, 0.6]
CHAINS = ["lth", "lth_rewind"]
# Six steps a run; a rewound chain goes back to step 2.
PARAMS: dict[str, Any] = {
    "sparsity": 0.6,
    "seed": 3,
    "baselines": [],
    "lottery": [*CHAINS, "lottery_pool"],
    "training": {
        "epochs": 0.6,
        "batch_size": 16,
        "precision": "fp32",
        "learning_rate": 2e-3,
        "dropout": 0.1,
    },
    "imp": {"compression_rate": 0.25, "rewind": 0.34, "coefficients": COEFFICIENTS},
}

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


# The pool by itself


NUMBERS = st.floats(-1e6, 1e6, width=32)


@LAW
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20), st.floats(0, 1))
def test_a_mixture_is_exact_at_its_ends_and_linear_between(pairs, share: float) -> None:
    one = {"w": torch.tensor([a for a, _ in pairs])}
    other = {"w": torch.tensor([b for _, b in pairs])}
    assert torch.equal(interpolate(one, other, 0)["w"], one["w"])
    assert torch.equal(interpolate(one, other, 1)["w"], other["w"])
    assert torch.equal(interpolate(one, one, share)["w"], one["w"])
    expected = (1 - share) * one["w"].double() + share * other["w"].double()
    largest = float(torch.maximum(one["w"].abs(), other["w"].abs()).max())
    torch.testing.assert_close(
        interpolate(one, other, share)["w"].double(), expected, rtol=0, atol=1e-6 * largest + 1e-30
    )


def test_pruned_back_to_exactly_the_share_by_magnitude() -> None:
    weights = {"a": torch.tensor([3.0, -1.0, 0.5]), "b": torch.tensor([[-4.0], [2.0]])}
    weights["bias"] = torch.tensor([0.1, 0.2])
    found = pruned_to(weights, ["a", "b"], 0.6)
    assert found["a"].tolist() == [3.0, 0.0, 0.0] and found["b"].tolist() == [[-4.0], [0.0]]
    assert found["bias"].tolist() == weights["bias"].tolist()
    assert weights["a"].tolist() == [3.0, -1.0, 0.5]  # not in place


def ticket_of(seed: int, sparsity: float) -> Weights:
    """Random weights of two matrices and a bias, the matrices pruned by magnitude."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {"a": (5, 8), "b": (4, 15), "bias": (6,)}
    weights = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    return pruned_to(weights, ["a", "b"], sparsity)


def nearness(target: Weights) -> Any:
    """A score that is highest at `target`."""

    def score(weights: Weights) -> float:
        return -sum(float(((weights[n] - w) ** 2).sum()) for n, w in target.items())

    return score


def pool(ticket: Weights, others: list[Weights], score: Any, coefficients: list | None = None):
    """The pool of tickets with 60 of 100 weights pruned."""
    given_coefficients = COEFFICIENTS if coefficients is None else coefficients
    return lottery_pool.lottery_pool(ticket, others, ["a", "b"], 0.6, given_coefficients, score)


@pytest.mark.parametrize("planted", COEFFICIENTS)
def test_a_planted_better_mixture_is_found(planted: float) -> None:
    ticket, other, noise = ticket_of(0, 0.6), ticket_of(1, 0.3), ticket_of(2, 0.0)
    target = pruned_to(interpolate(ticket, other, planted), ["a", "b"], 0.6)
    found, taken = pool(ticket, [other, noise], nearness(target))
    assert taken == [planted, 0.0]
    assert all(torch.equal(found[name], w) for name, w in target.items())


def test_where_nothing_helps_the_ticket_stays() -> None:
    ticket = ticket_of(0, 0.6)
    found, taken = pool(ticket, [ticket_of(1, 0.3), ticket_of(2, 0.0)], nearness(ticket))
    assert taken == [0.0, 0.0]
    assert all(torch.equal(found[name], w) for name, w in ticket.items())


def test_what_is_no_better_is_not_taken() -> None:
    found, taken = pool(ticket_of(0, 0.6), [ticket_of(1, 0.3)], lambda weights: 0.5)
    assert taken == [0.0]
    assert all(torch.equal(found[name], w) for name, w in ticket_of(0, 0.6).items())


@LAW
@given(
    st.lists(st.integers(0, 99), max_size=4),
    st.integers(0, 99),
    st.lists(st.sampled_from([0.0, *COEFFICIENTS, 1.0]), min_size=1, max_size=4, unique=True),
    st.integers(0, 99),
)
def test_a_pool_is_greedy_exact_and_never_below_its_ticket(seeds, own, coefficients, aim) -> None:
    ticket, others = ticket_of(own, 0.6), [ticket_of(seed, 0.3) for seed in seeds]
    before = [{name: w.clone() for name, w in each.items()} for each in (ticket, *others)]
    score = nearness(ticket_of(aim, 0.0))
    found, taken = pool(ticket, others, score, coefficients)

    best = ticket  # greedily again, from what the docstring says
    for other, chosen in zip(others, taken, strict=True):
        tried = {c: pruned_to(interpolate(best, other, c), ["a", "b"], 0.6) for c in coefficients}
        most = max(score(weights) for weights in tried.values())
        if most > score(best):
            assert score(tried[chosen]) == most
            best = tried[chosen]
        else:
            assert chosen == 0
    assert all(torch.equal(found[name], w) for name, w in best.items())
    assert score(found) >= score(ticket)
    assert sum(int((found[name] == 0).sum()) for name in ("a", "b")) == 60
    assert found["bias"].all()
    for each, old in zip((ticket, *others), before, strict=True):
        assert all(torch.equal(each[name], w) for name, w in old.items())


# The stages


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project in which all lottery rows have run."""
    folder = make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        run_script("dense_finetune")
        for chain in PARAMS["lottery"]:
            run_script("imp_start", "--chain", chain)
            for i in range(5):
                run_script("imp_round", "--chain", chain, "--round", i)
        for method in PARAMS["lottery"]:
            run_script("lottery_result", "--method", method)
    return folder


@pytest.fixture
def inside(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the project."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def mask_of(folder: str | Path) -> Mask:
    """The mask in a folder."""
    return masks.load(Path(folder) / "mask.safetensors", main_network.prunable_shapes())


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_begins_with_the_dense_network(inside, chain: str) -> None:
    start = Path(f"models/imp/{chain}/start")
    assert_same(state_in(start), state_in("models/retrained/dense"))
    assert cost_in(start) == cost_in("models/retrained/dense")
    assert cost_in(start)["steps"] == 6


def test_lth_resets_to_the_very_start(inside) -> None:
    reset = state_in("models/imp/lth/reset")
    assert_same(reset, state_in("models/start"))
    assert reset.step == 0 and reset.first_moments == {} == reset.second_moments
    cost = read_json("models/imp/lth/reset/cost.json")
    assert cost["steps"] == cost["flops"] == 0


def test_lth_rewind_resets_to_the_state_after_its_first_steps(inside) -> None:
    state, mask = main_network.load_start("models/start")
    cost = Cost()
    plan = read_yaml("models/plan/imp_lth_rewind_start.yaml")
    expected = trained(state, mask, plan, 2, cost)
    reset = state_in("models/imp/lth_rewind/reset")
    assert_same(reset, expected)  # moments as well
    assert reset.step == 2 and reset.first_moments.keys() == reset.second_moments.keys() != set()
    assert all(not torch.equal(w, state.weights[n]) for n, w in prunable(reset).items())
    found = read_json("models/imp/lth_rewind/reset/cost.json")
    assert (found["steps"], found["flops"]) == (2, pytest.approx(cost.flops))


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_round_prunes_resets_and_trains_to_the_end_of_the_budget(inside, chain, i: int) -> None:
    folder = Path(f"models/imp/{chain}")
    before = state_in(folder / (f"round_{i - 1}" if i else "start"))
    mask = mask_of(folder / f"round_{i}")
    assert same(mask, criteria.magnitude(prunable(before), SPARSITIES[i]))

    state, cost = copied(state_in(folder / "reset")), Cost()
    state.prune(mask)
    plan = read_yaml(f"models/plan/imp_{chain}_{i}.yaml")
    expected = trained(state, mask, plan, 6, cost)
    after = state_in(folder / f"round_{i}")
    assert_same_weights(after.weights, expected.weights)
    assert after.step == 6
    found = cost_in(folder / f"round_{i}")
    assert found["steps"] == cost.steps == (6 if chain == "lth" else 4)
    assert found["search_steps"] == 0
    assert found["sparse_flops"] == pytest.approx(cost.sparse_flops)
    curve = main_network.load_curve(folder / f"round_{i}/curve.csv")
    assert curve[-1]["step"] == 6
    if chain == "lth_rewind":  # the network just pruned
        assert (curve[0]["step"], curve[0]["train_loss"]) == (2, None)


@pytest.mark.parametrize("chain", CHAINS)
def test_masks_of_a_chain_are_nested_and_exact(inside, chain: str) -> None:
    found = [mask_of(f"models/imp/{chain}/round_{i}") for i in range(3)]
    for sparsity, mask in zip(SPARSITIES, found, strict=True):
        kept, total = masks.count(mask)
        assert total - kept == round(sparsity * total)
    for before, after in itertools.pairwise(found):
        assert all(not (after[n] & ~kept).any() for n, kept in before.items())


def test_the_chains_are_not_the_same(inside) -> None:
    one, other = (mask_of(f"models/imp/{chain}/round_2") for chain in CHAINS)
    assert not same(one, other)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chains_result_is_its_last_round(inside, chain: str) -> None:
    folder, last = Path(f"models/retrained/{chain}"), Path(f"models/imp/{chain}/round_2")
    assert_same_weights(state_in(folder).weights, state_in(last).weights)
    assert same(mask_of(folder), mask_of(last))
    curves = [main_network.load_curve(path / "curve.csv") for path in (folder, last)]
    assert curves[0] == curves[1]
    assert masks.sparsity(mask_of(folder)) == pytest.approx(0.6, abs=1e-4)


@pytest.mark.parametrize(("chain", "searched"), [("lth", 6 + 2 * 6), ("lth_rewind", 4 + 2 * 4)])
def test_the_steps_are_the_last_runs_and_all_others_are_search(inside, chain, searched) -> None:
    found = cost_in(f"models/retrained/{chain}")
    assert (found["steps"], found["search_steps"]) == (6, searched)
    folders = ("start", "round_0", "round_1", "round_2")
    parts = [cost_in(f"models/imp/{chain}/{folder}") for folder in folders]
    # The steps before the rewinding point are the dense run's first ones, and so not counted again.
    for part in ("flops", "sparse_flops", "seconds"):
        assert found[part] == pytest.approx(sum(cost[part] for cost in parts))
    assert found["peak_memory"] == max(cost["peak_memory"] for cost in parts) > 0


def validation_score(weights: Weights) -> float:
    """The score of weights on the validation split."""
    plan = read_yaml("models/plan/lottery_lottery_pool.yaml")
    split = batches.load_split(main_network.ENCODED / "validation.safetensors", torch.device("cpu"))
    model = main_network.build(State({n: w.clone() for n, w in weights.items()}), plan)
    return metrics.score(plan["metric"], *loop.predict(model, split, "fp32"))


def test_the_pool_is_mixed_of_lths_rounds_nearest_first(
    inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spied(ticket: Weights, others: list[Weights], *more: Any) -> Any:
        seen.update(ticket=ticket, others=others, more=more)
        mixed = pruned_to(interpolate(ticket, others[0], 0.5), more[0], more[1])
        return mixed, [0.5, *[0.0] * (len(others) - 1)]

    monkeypatch.setattr(lottery_pool, "lottery_pool", spied)
    shutil.copytree(Path.cwd(), tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    run_script("lottery_result", "--method", "lottery_pool")

    chain = Path("models/imp/lth")
    assert_same_weights(seen["ticket"], state_in(chain / "round_2").weights)
    expected = [chain / "round_1", chain / "round_0"]
    assert len(seen["others"]) == len(expected)
    for weights, folder in zip(seen["others"], expected, strict=True):
        assert_same_weights(weights, state_in(folder).weights)
    names, sparsity, coefficients, score = seen["more"]
    assert sorted(names) == sorted(main_network.prunable_shapes())
    assert (sparsity, coefficients) == (0.6, COEFFICIENTS)
    assert score(seen["ticket"]) == validation_score(seen["ticket"])

    folder = Path("models/retrained/lottery_pool")
    found, mask = state_in(folder).weights, mask_of(folder)
    mixed = interpolate(seen["ticket"], seen["others"][0], 0.5)
    assert_same_weights(found, pruned_to(mixed, names, 0.6))
    kept, total = masks.count(mask)
    assert total - kept == round(0.6 * total)
    assert all(not found[n][~kept].any() and found[n][kept].all() for n, kept in mask.items())
    assert read_json(folder / "run.json")["coefficients"] == [0.5, 0.0]


def test_the_pools_result_is_exact_and_not_below_lths(inside) -> None:
    folder = Path("models/retrained/lottery_pool")
    found, mask = state_in(folder).weights, mask_of(folder)
    kept, total = masks.count(mask)
    assert total - kept == round(0.6 * total)
    assert all(not found[n][~kept].any() for n, kept in mask.items())
    ticket = state_in("models/retrained/lth").weights
    assert validation_score(found) >= validation_score(ticket)
    taken = read_json(folder / "run.json")["coefficients"]
    assert set(taken) <= {0.0, *COEFFICIENTS}
    assert any(taken) == (validation_score(found) > validation_score(ticket))
    costs = [cost_in(f"models/retrained/{method}") for method in ("lth", "lottery_pool")]
    assert costs[0]["seconds"] < costs[1]["seconds"]  # the mixing comes on top
    assert [(cost["steps"], cost["search_steps"]) for cost in costs] == [(6, 18)] * 2
    # Two other rounds at each coefficient, and the ticket: a forward pass of validation data each.
    split = batches.load_split(main_network.ENCODED / "validation.safetensors", torch.device("cpu"))
    model = main_network.build(state_in(folder), read_yaml("models/plan/lottery_lottery_pool.yaml"))
    model.set_attn_implementation("eager")  # the counter does not see CPUs' fused attention
    with FlopCounterMode(display=False) as counter:
        loop.predict(model, split, "fp32")
    looks = 1 + 2 * len(COEFFICIENTS)
    more = costs[1]["flops"] - costs[0]["flops"]
    assert more == pytest.approx(looks * counter.get_total_flops(), rel=0.02)
    assert 0 < costs[1]["sparse_flops"] - costs[0]["sparse_flops"] < more


@pytest.mark.parametrize("method", PARAMS["lottery"])
def test_a_lottery_row_can_be_evaluated(inside, method: str) -> None:
    run_script("evaluate", "--method", method)
    result = read_json(f"reports/results/{method}.json")
    assert result["pruned_weights"] == round(0.6 * result["prunable_weights"])
    assert result["cost"] == cost_in(f"models/retrained/{method}")
    assert 0 <= result["test"]["accuracy"] <= 1


def test_rounds_that_no_target_needs_pass_by(inside) -> None:
    notes = sorted(str(path.parent) for path in Path("models/imp").rglob("idle.txt"))
    beyond = [f"models/imp/{chain}/round_{i}" for chain in CHAINS for i in (3, 4)]
    pool_parts = ["start", "reset", *(f"round_{i}" for i in range(5))]
    assert notes == sorted([*beyond, *(f"models/imp/lottery_pool/{part}" for part in pool_parts)])
