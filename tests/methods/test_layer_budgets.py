"""LAMP and layer budgets on toy networks: exact, within their budgets, and at their cost."""

from typing import Any

import pytest
import torch
from torch import nn

import instant_soup
from helpers import SPARSITIES, BareRun, Toy, batches_of, loader, loss, perceptron, same
from instant_soup.errors import UserError
from instant_soup.methods.budgets import BUDGETS, lamp_mask
from instant_soup.methods.erdos_renyi import densities
from instant_soup.methods.isp_plus import IspPlus
from instant_soup.methods.lamp import LAMP
from instant_soup.methods.layer_budgets import LayerBudgets
from instant_soup.methods.layerwise import Layerwise
from instant_soup.methods.one_shot import OneShot
from instant_soup.seeds import generator
from instant_soup.sparsity import budgets, masks, scores
from instant_soup.training import gradients, probes

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

SIZES = (4, 12, 9, 3)


@pytest.fixture
def run() -> BareRun:
    """A run of a network of three layers, with three batches."""
    model = Toy(*SIZES).double()
    return BareRun(model.matrices(), network=model, batches=batches_of(4, 3))


class Counted(BareRun):
    """A run whose every forward pass is one FLOP."""

    def flops(self, network: nn.Module, batch: Any) -> tuple[float, float]:
        return 1.0, 0.0


@pytest.mark.parametrize("score", ["magnitude", "fisher", "snip"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_any_budget_of_any_score_is_exact(run: BareRun, budget: str, score: str) -> None:
    before = {name: w.clone() for name, w in run.given.state_dict().items()}
    for sparsity in SPARSITIES:
        method = LayerBudgets(budget=budget, score=score, batches=2, probe_batches=2)
        mask = method.mask(run, sparsity)
        kept, total = masks.count(mask)
        assert total - kept == round(sparsity * total)
        assert same(mask, method.mask(run, sparsity))
    assert all(torch.equal(w, before[name]) for name, w in run.given.state_dict().items())


def test_some_budgets_are_rows_of_their_own(run: BareRun) -> None:
    for sparsity in SPARSITIES:
        found = {b: LayerBudgets(budget=b).mask(run, sparsity) for b in BUDGETS}
        assert same(found["global"], OneShot().mask(run, sparsity))
        assert same(found["uniform"], Layerwise().mask(run, sparsity))
        assert same(found["lamp"], LAMP().mask(run, sparsity))
        dense = densities({name: w.shape for name, w in run.weights.items()}, sparsity)
        for name, kept in found["erdos_renyi"].items():
            assert int(kept.sum()) == pytest.approx(dense[name] * kept.numel(), abs=1)


def test_owl_takes_outliers_from_where_it_is_told_and_as_far_apart() -> None:
    """Of the mean, 2, one weight is more than the double; densities are 1/2 ± 1/4."""
    few, none = torch.ones(2, 4), torch.ones(2, 4)
    few[0, 2] = 9.0
    run = BareRun({"layer.0.w": few, "layer.1.w": none})
    found = LayerBudgets(budget="owl", outlier=2.0, spread=0.25).mask(run, 0.5)
    assert [int(kept.sum()) for kept in found.values()] == [6, 2]
    found = LayerBudgets(budget="owl", outlier=4.5, spread=0.25).mask(run, 0.5)
    assert [int(kept.sum()) for kept in found.values()] == [4, 4]


def test_lamp_of_fisher_scores_takes_them_for_squares(run: BareRun) -> None:
    squares = gradients.mean_squared_gradient(run, 3)
    worth = scores.fisher_scores(run.weights, squares)
    assert same(
        LAMP(score="fisher", batches=3).mask(run, 0.7), scores.best(budgets.lamp(worth), 0.7)
    )
    by_weight = budgets.lamp({n: w.float().abs().double() ** 2 for n, w in run.weights.items()})
    assert same(LAMP().mask(run, 0.7), scores.best(by_weight, 0.7))


@pytest.mark.parametrize("squared", [True, False])
def test_to_lamp_a_score_below_zero_is_none_at_all(squared: bool) -> None:
    worth = {"w": torch.tensor([[-3.0, 1.0, 2.0]])}
    found = [lamp_mask(BareRun(worth), worth, s, squared=squared)["w"] for s in (2 / 3, 1 / 3)]
    assert found[0].tolist() == [[False, False, True]] and found[1].tolist() == [
        [False, True, True]
    ]


def test_the_mean_squared_gradient_is_of_batches(run: BareRun) -> None:
    found = gradients.mean_squared_gradient(run, 3)
    every = []
    for batch in run.rows_of:
        one = BareRun(run.weights, network=run.given, batches=[batch])
        every.append(gradients.mean_gradient(one, 1))
    for name, square in found.items():
        expected = torch.stack([g[name] ** 2 for g in every]).mean(0)
        torch.testing.assert_close(square, expected)


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_is_pruned_stays_pruned(run: BareRun, budget: str) -> None:
    """On the way: a second cut takes only of what the first has left."""
    draws = torch.Generator().manual_seed(0)
    run.prune(
        scores.best({n: torch.rand(w.shape, generator=draws) for n, w in run.weights.items()}, 0.6)
    )
    method = IspPlus(budget=budget)
    # Scores of both signs, and zeros of what is pruned.
    worth = {
        n: (torch.rand(w.shape, generator=draws) - 0.3) * k
        for (n, w), k in zip(run.weights.items(), run.mask.values(), strict=True)
    }
    if budget == "global":
        worth = {n: s.abs() for n, s in worth.items()}
    for sparsity in (0.61, 0.7, 0.93):
        mask = method.best(run, worth, sparsity)
        assert not any((kept & ~run.mask[name]).any() for name, kept in mask.items())
        kept, total = masks.count(mask)
        assert total - kept == round(sparsity * total)


class Quadratic(BareRun):
    """½ Σ c w², in the weights of a toy network."""

    def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
        named = dict(network.named_parameters())
        return sum(batch * 0.5 * i * (named[n] ** 2).sum() for i, n in enumerate(self.mask, 1))


def test_a_slope_is_that_of_the_gradient_along_its_direction() -> None:
    """Of a quadratic loss exactly: |Σ c w z|, z normal in one matrix."""
    model = Toy(*SIZES).double()
    run = Quadratic(model.matrices(), seed=3, network=model, batches=[1.0, 2.0])
    found, draws = probes.slopes(run, 2), generator(3, 0)
    expected = dict.fromkeys(run.mask, 0.0)
    for factor in run.rows_of:
        for i, (name, w) in enumerate(run.weights.items(), 1):
            z = torch.randn(w.shape, generator=draws)
            expected[name] += abs(float((factor * i * w * z).sum())) / 2
    assert found == pytest.approx(expected, rel=1e-6)


def test_what_is_pruned_adds_nothing_to_a_slope() -> None:
    """Of a sum of all weights: |Σ z| over those that are left."""

    class Linear(BareRun):
        def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
            return sum(w.sum() for n, w in network.named_parameters() if n in self.mask)

    model, draws = Toy(*SIZES).double(), generator(3, 0)
    run = Linear(model.matrices(), seed=3, network=model, batches=[0])
    run.prune(scores.magnitude(run.weights, 0.5))
    found = probes.slopes(run, 1)
    for name, kept in run.mask.items():
        z = torch.randn(kept.shape, generator=draws)
        assert found[name] == pytest.approx(abs(float(z[kept].double().sum())), rel=1e-6)


def test_a_distortion_is_the_outputs_squared_change(run: BareRun) -> None:
    worth, (batch, *_) = scores.magnitude_scores(run.weights), run.rows_of
    kept = {name: [w.numel(), w.numel() // 2, 0] for name, w in run.weights.items()}
    found = probes.distortions(run, worth, kept, 1)
    whole = run.given.eval()(batch["x"]).detach()
    name = "layers.1.weight"
    mask = masks.keep_largest_each({name: worth[name]}, {name: kept[name][1]})[name]
    weights = {**run.state.weights, name: run.weights[name] * mask}
    moved = torch.func.functional_call(run.given, weights, (batch["x"],)).detach()
    assert found[name][0] == 0 and found[name][2] > 0
    assert found[name][1] == pytest.approx(float((moved - whole).square().mean()), rel=1e-4)


def test_passes_are_counted() -> None:
    model = Toy(*SIZES).double()
    run = Counted(model.matrices(), network=model, batches=batches_of(4, 3))
    run.search("a", LayerBudgets(budget="ecoflap", probe_batches=2).mask, run, 0.7)
    assert run.cost.flops == run.cost.sparse_flops == 2 * 2 * 3  # two sides, batches, matrices
    run.search("b", LayerBudgets(levels=4, probe_batches=2).mask, run, 0.7)
    assert run.cost.flops == 12 + 2 * (1 + 3 * 4)
    before = run.cost.flops
    run.search("c", LayerBudgets(budget="owl").mask, run, 0.7)
    assert run.cost.flops == before


def test_the_library_counts_its_passes_too() -> None:
    """A perceptron's forward pass of a batch takes 2 · rows · weights; of matrices alone here."""
    rows = loader().batch_size or 0
    own: dict[str, Any] = {"steps": 4, "learning_rate": 1e-3, "sparsity": 0.7, "precision": "fp32"}
    kinds = (LayerBudgets(budget="uniform"), LayerBudgets(levels=4, probe_batches=2))
    plain, probed = (
        instant_soup.prune(perceptron(), loader(), loss, method=kind, **own) for kind in kinds
    )
    forward = 2 * rows * sum(p.numel() for p in probed.model.parameters() if p.ndim > 1)
    passes = 2 * (1 + 4 * len(probed.mask))
    assert probed.cost["flops"] - plain.cost["flops"] == passes * forward


def test_a_layer_that_the_output_needs_keeps_more() -> None:
    """The middle layer's weights are as large as others', and nothing reads what it writes."""
    model = Toy(*SIZES).double()
    with torch.no_grad():
        model.layers[2].weight[:, :8] = 0.0
    run = BareRun(model.matrices(), network=model, batches=batches_of(4, 3))
    found = LayerBudgets(probe_batches=2).mask(run, 0.7)
    density = {name: float(kept.float().mean()) for name, kept in found.items()}
    assert density["layers.1.weight"] < density["layers.0.weight"]


@pytest.mark.parametrize("budget", ["ecoflap", "rate_distortion"])
def test_a_network_that_has_diverged_is_refused(run: BareRun, budget: str) -> None:
    run.state.weights["layers.2.bias"].fill_(float("nan"))
    with pytest.raises(UserError, match=r"^budget: the loss or the output .* is not finite"):
        LayerBudgets(budget=budget).mask(run, 0.5)


# Through the doors


def test_a_loss_that_does_not_call_the_model_has_no_output() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()

    def own(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss(model.inner, batch)

    own_settings = {"steps": 6, "learning_rate": 1e-3, "method": "layer_budgets"}
    with pytest.raises(UserError, match=r"^budget: rate_distortion compares what the model ret"):
        instant_soup.prune(Hidden(), loader(), own, **own_settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": "owl", "sparsity": 0.9}, "spread: 0.08 may leave a layer without weights at"),
        ({"budget": "owl", "levels": 3}, "levels: 3 is for budget: rate_distortion"),
        ({"method": "isp_plus", "outlier": 3.0}, "outlier: 3.0 is for budget: owl"),
        ({"budget": "best"}, "budget: 'best' is not allowed; allowed: global | uniform"),
        ({"method": "isp", "budget": "lamp"}, "budget: no setting of isp"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, words: str) -> None:
    own = {"steps": 6, "learning_rate": 1e-3, "method": "layer_budgets", **changes}
    with pytest.raises(UserError) as refused:
        instant_soup.prune(perceptron(), loader(), loss, **own)
    assert str(refused.value).startswith(words)


@pytest.mark.parametrize("budget", BUDGETS[1:])
def test_rows_on_the_way_have_budgets(budget: str) -> None:
    own = {"steps": 12, "learning_rate": 3e-3, "sparsity": 0.7, "precision": "fp32"}
    own |= {"mask_finding": 0.5, "compression_rate": 0.35, "budget": budget}
    masks_of = []
    for method in ("isp_plus", "progressive", lambda w, g, s: {n: w[n].abs() for n in w}):
        pruned = instant_soup.prune(perceptron(), loader(), loss, method=method, **own)
        kept, total = masks.count(pruned.mask)
        assert total - kept == round(0.7 * total)
        masks_of.append(pruned.mask)
    assert not same(masks_of[0], masks_of[1])
    if budget != "lamp":  # a function's scores are taken as they are there
        assert same(masks_of[1], masks_of[2])


def test_a_loop_gives_the_batches_that_layers_are_probed_on() -> None:
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    own = {"method": "isp_plus", "steps": 24, "budget": "ecoflap"}
    with pytest.raises(UserError, match=r"^batches: isp_plus trains beside the loop or takes"):
        instant_soup.Pruner(model, optimizer, **own)
    instant_soup.Pruner(model, optimizer, batches=loader(), loss=loss, **own)
