"""Lottery tickets: IMP's rounds by the stages' own scripts, and the pool that is mixed of them."""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from helpers import (
    FakeRun,
    assert_same,
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
from instant_soup.methods import lottery_pool
from instant_soup.methods.lottery_pool import pruned_to
from instant_soup.methods.soups import interpolate
from instant_soup.pipeline.run import PipelineRun, build
from instant_soup.pipeline.stage_files import TicketStage
from instant_soup.pipeline.workspace import (
    ENCODED,
    START,
    load_curve,
    load_start,
    load_ticket,
    prunable_shapes,
)
from instant_soup.sparsity import masks, scores
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
    "methods": [*CHAINS, "lottery_pool"],
    "training": training_for(0.6),
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
    return lottery_pool.pool(ticket, others, ["a", "b"], 0.6, given_coefficients, score)


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


# The rows


@dataclass
class Trained:
    """What a row has trained, and where it stood then."""

    label: str
    state: State
    mask: Mask
    cost: Cost  # of this training alone


class Watched(PipelineRun):
    """A run that remembers each training of its search."""

    def train(self, last: int, label: str, **how: Any) -> None:
        before = asdict(self.cost)
        super().train(last, label, **how)
        added = {part: value - before[part] for part, value in asdict(self.cost).items()}
        self.seen.append(Trained(label, self.state.copy(), self.mask, Cost(**added)))

    seen: list[Trained]


def watched(method: str) -> Watched:
    """The run in which a planned row has found its ticket, watched."""
    stage = TicketStage.read(f"models/plan/ticket_{method}.yaml")
    run = Watched(*load_start(START), recipe(), FakeRun())
    run.seen = []
    stage.build().find(run, stage.sparsity)
    return run


def recipe() -> Recipe:
    """The settings of training, which all rows have in common."""
    found = TicketStage.read("models/plan/ticket_lth.yaml").recipe
    assert found is not None
    return found


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project in which the dense row and all lottery rows have run."""
    folder = make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, folder, patch)
        run_script("dense_finetune")
        for method in PARAMS["methods"]:
            run_row(method)
    return folder


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the project, with the store that its rows have filled."""
    work_in(project, project, monkeypatch)


@pytest.fixture(scope="module")
def chains(project: Path) -> dict[str, Watched]:
    """Both chains, searched without a store of former trainings."""
    with pytest.MonkeyPatch.context() as patch:
        work_in(project, project / "elsewhere", patch)
        return {chain: watched(chain) for chain in CHAINS}


def rounds_of(run: Watched) -> list[Trained]:
    """The trainings of a chain from the dense network on."""
    return [one for one in run.seen if one.label != "rewind"]


def mask_of(folder: str | Path) -> Mask:
    """The mask in a folder."""
    return masks.load(Path(folder) / "mask.safetensors", prunable_shapes())


def masks_of(run: Watched) -> list[Mask]:
    """The masks of a chain's rounds; of the last only the ticket is there."""
    return [*(one.mask for one in rounds_of(run)[1:]), run.mask]


def reset_of(chain: str) -> tuple[State, Cost]:
    """Where a chain resets to, by the bare engine, and what comes before it."""
    state, mask = load_start(START)
    cost = Cost()
    return (state if chain == "lth" else trained(state, mask, recipe(), 2, cost)), cost


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_begins_with_the_dense_network(inside, chains, chain: str) -> None:
    first = rounds_of(chains[chain])[0]
    assert first.label == "dense" and masks.sparsity(first.mask) == 0
    assert_same_weights(first.state.weights, state_in("models/retrained/dense").weights)
    dense = cost_in("models/retrained/dense")
    assert (first.cost.steps, first.cost.flops) == (6, pytest.approx(dense["flops"]))


def test_the_labels_say_what_is_trained(chains) -> None:
    labels = {chain: [one.label for one in run.seen] for chain, run in chains.items()}
    assert labels == {
        "lth": ["dense", "lth round 0", "lth round 1"],
        "lth_rewind": ["rewind", "dense", "lth_rewind round 0", "lth_rewind round 1"],
    }


def test_lth_resets_to_the_very_start(inside, chains) -> None:
    start, _ = load_start(START)
    start.prune(chains["lth"].mask)
    assert_same(chains["lth"].state, start)
    assert start.step == 0 and start.first_moments == {} == start.second_moments
    assert chains["lth"].cost.steps == 0
    assert not Path("models/tickets/lth/found/state").exists()


def test_lth_rewind_resets_to_the_state_after_its_first_steps(inside, chains) -> None:
    expected, cost = reset_of("lth_rewind")
    first = chains["lth_rewind"].seen[0]
    assert first.label == "rewind"
    assert_same(first.state, expected)  # moments as well
    assert expected.step == 2
    assert expected.first_moments.keys() == expected.second_moments.keys() != set()
    start, _ = load_start(START)
    assert all(not torch.equal(w, start.weights[n]) for n, w in prunable(expected).items())
    assert (first.cost.steps, first.cost.flops) == (2, pytest.approx(cost.flops))
    expected.prune(chains["lth_rewind"].mask)
    assert_same(chains["lth_rewind"].state, expected)
    assert_same(state_in("models/tickets/lth_rewind/found"), expected)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_round_prunes_resets_and_trains_to_the_end_of_the_budget(
    inside, chains, chain: str, i: int
) -> None:
    found = rounds_of(chains[chain])
    mask = masks_of(chains[chain])[i]
    assert same(mask, scores.magnitude(prunable(found[i].state), SPARSITIES[i]))

    state, cost = reset_of(chain)[0].copy(), Cost()
    state.prune(mask)
    expected = trained(state, mask, recipe(), 6, cost)
    assert cost.steps == (6 if chain == "lth" else 4)
    if i < 2:
        after = found[i + 1]
        assert_same(after.state, expected)
        assert (after.cost.steps, after.cost.search_steps) == (cost.steps, 0)
        assert after.cost.sparse_flops == pytest.approx(cost.sparse_flops)
    else:  # the ticket, which sparse_retrain.py has trained
        after = state_in(f"models/retrained/{chain}")
        assert_same_weights(after.weights, expected.weights)
        assert after.step == 6


@pytest.mark.parametrize("chain", CHAINS)
def test_masks_of_a_chain_are_nested_and_exact(chains, chain: str) -> None:
    found = masks_of(chains[chain])
    for sparsity, mask in zip(SPARSITIES, found, strict=True):
        kept, total = masks.count(mask)
        assert total - kept == round(sparsity * total)
    for before, after in itertools.pairwise(found):
        assert all(not (after[n] & ~kept).any() for n, kept in before.items())


def test_the_chains_are_not_the_same(chains) -> None:
    one, other = (chains[chain].mask for chain in CHAINS)
    assert not same(one, other)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chains_result_is_its_ticket_trained(inside, chains, chain: str) -> None:
    folder = Path(f"models/retrained/{chain}")
    assert same(mask_of(folder), chains[chain].mask)
    assert same(mask_of(f"models/tickets/{chain}/found"), chains[chain].mask)
    assert masks.sparsity(mask_of(folder)) == pytest.approx(0.6, abs=1e-4)
    curve = load_curve(folder / "curve.csv")
    steps = [row["step"] for row in curve]
    assert steps == sorted(steps) and steps[-1] == 6
    # The network just pruned; before it lie the steps that it was rewound to.
    pruned = [row["step"] for row in curve if row["train_loss"] is None]
    assert pruned == ([] if chain == "lth" else [2])
    sparsities = [row["sparsity"] for row in curve if row["step"] > 2]
    assert sparsities == pytest.approx([0.6] * len(sparsities), abs=1e-4)


@pytest.mark.parametrize(("chain", "searched"), [("lth", 6 + 2 * 6), ("lth_rewind", 4 + 2 * 4)])
def test_the_steps_are_the_last_runs_and_all_others_are_search(
    inside, chains, chain, searched
) -> None:
    found = cost_in(f"models/retrained/{chain}")
    assert (found["steps"], found["search_steps"]) == (6, searched)
    ticket, last = chains[chain], Cost()
    trained(ticket.state, ticket.mask, recipe(), 6, last)
    # The steps before the rewinding point are the dense run's first ones, and so not counted again.
    parts = [*(one.cost for one in rounds_of(ticket)), last]
    for part in ("flops", "sparse_flops"):
        assert found[part] == pytest.approx(sum(getattr(cost, part) for cost in parts))
    assert found["seconds"] > 0 < found["peak_memory"]


def validation_score(weights: Weights) -> float:
    """The score of weights on the validation split."""
    split = batches.load_split(ENCODED / "validation.safetensors", torch.device("cpu"))
    model = build(State({n: w.clone() for n, w in weights.items()}), recipe())
    return metrics.score(recipe().metric, *loop.predict(model, split, "fp32"))


def test_the_pool_is_mixed_of_lths_rounds_nearest_first(
    inside, chains, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def spied(ticket: Weights, others: list[Weights], *more: Any) -> Any:
        copied = [{n: w.clone() for n, w in weights.items()} for weights in (ticket, *others)]
        seen.update(ticket=copied[0], others=copied[1:], more=more, score=more[-1](ticket))
        mixed = pruned_to(interpolate(ticket, others[0], 0.5), more[0], more[1])
        return mixed, [0.5, *[0.0] * (len(others) - 1)]

    monkeypatch.setattr(lottery_pool, "pool", spied)
    run = found_by("lottery_pool")

    assert_same_weights(seen["ticket"], state_in("models/retrained/lth").weights)
    expected = [one.state.weights for one in rounds_of(chains["lth"])[:0:-1]]
    assert len(seen["others"]) == len(expected) == 2
    for weights, other in zip(seen["others"], expected, strict=True):
        assert_same_weights(weights, other)
    names, sparsity, coefficients, _ = seen["more"]
    assert sorted(names) == sorted(prunable_shapes())
    assert (sparsity, coefficients) == (0.6, COEFFICIENTS)
    assert seen["score"] == validation_score(seen["ticket"])

    mixed = interpolate(seen["ticket"], seen["others"][0], 0.5)
    assert_same_weights(run.state.weights, pruned_to(mixed, names, 0.6))
    kept, total = masks.count(run.mask)
    assert total - kept == round(0.6 * total)
    for name, kept in run.mask.items():
        assert not run.state.weights[name][~kept].any() and run.state.weights[name][kept].all()
    assert run.found["coefficients"] == [0.5, 0.0]
    assert run.state.step == 6  # nothing is left to train


def test_the_pools_result_is_exact_and_not_below_lths(inside) -> None:
    folder = Path("models/retrained/lottery_pool")
    found, mask = state_in(folder).weights, mask_of(folder)
    kept, total = masks.count(mask)
    assert total - kept == round(0.6 * total)
    assert all(not found[n][~kept].any() for n, kept in mask.items())
    assert_same_weights(found, load_ticket("models/tickets/lottery_pool/found", START)[0].weights)
    ticket = state_in("models/retrained/lth").weights
    assert validation_score(found) >= validation_score(ticket)
    taken = read_json(folder / "run.json")["coefficients"]
    assert set(taken) <= {0.0, *COEFFICIENTS}
    assert any(taken) == (validation_score(found) > validation_score(ticket))
    costs = [cost_in(f"models/retrained/{method}") for method in ("lth", "lottery_pool")]
    assert [(cost["steps"], cost["search_steps"]) for cost in costs] == [(6, 18)] * 2
    # Two other rounds at each coefficient, and the ticket: a forward pass of validation data each.
    split = batches.load_split(ENCODED / "validation.safetensors", torch.device("cpu"))
    model = build(state_in(folder), recipe())
    model.set_attn_implementation("eager")  # the counter does not see CPUs' fused attention
    with FlopCounterMode(display=False) as counter:
        loop.predict(model, split, "fp32")
    looks = 1 + 2 * len(COEFFICIENTS)
    more = costs[1]["flops"] - costs[0]["flops"]
    assert more == pytest.approx(looks * counter.get_total_flops(), rel=0.02)
    assert 0 < costs[1]["sparse_flops"] - costs[0]["sparse_flops"] < more


@pytest.mark.parametrize("method", PARAMS["methods"])
def test_a_lottery_row_can_be_evaluated(inside, method: str) -> None:
    run_script("evaluate", "--method", method)
    result = read_json(f"reports/results/{method}.json")
    assert result["pruned_weights"] == round(0.6 * result["prunable_weights"])
    assert result["cost"] == cost_in(f"models/retrained/{method}")
    assert 0 <= result["test"]["accuracy"] <= 1


# What the store shares


def test_the_rows_train_what_they_have_in_common_once(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a store of its own: the dense row, then each chain, then the pool."""
    work_in(project, tmp_path, monkeypatch)
    taken, counts = steps_taken(monkeypatch), {}

    def counted(name: str, work: Callable[[], object]) -> None:
        taken.clear()
        work()
        counts[name] = len(taken)

    counted("dense", lambda: run_script("dense_finetune"))
    for method in PARAMS["methods"]:
        counted(method, lambda method=method: found_by(method))
    assert counts == {
        "dense": 6,
        "lth": 2 * 6,  # its dense network is the dense row's
        "lth_rewind": 2 + 2 * 4,
        "lottery_pool": 6,  # LTH's last round; the others are LTH's
    }


@pytest.mark.parametrize(("method", "again"), [("lth", 6), ("lth_rewind", 4)])
def test_a_sweep_over_sparsity_pays_each_round_once(
    inside, monkeypatch: pytest.MonkeyPatch, method: str, again: int
) -> None:
    """Rounds at 0.25 and 0.5 are those of the target 0.6; so 0.75 trains no more, and 0.9 one."""
    taken = steps_taken(monkeypatch)
    near = found_by(method, 0.75)
    assert taken == []
    far = found_by(method, 0.9)
    assert len(taken) == again
    assert masks.sparsity(near.mask) == pytest.approx(0.75, abs=1e-4)
    assert near.cost.search_steps + again == far.cost.search_steps
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd() / f"alone-{method}"))
    alone = found_by(method, 0.75)
    assert len(taken) > again
    assert same(alone.mask, near.mask)
    assert_same(alone.state, near.state)
    assert replace(alone.cost, seconds=0, peak_memory=0) == replace(
        near.cost, seconds=0, peak_memory=0
    )
