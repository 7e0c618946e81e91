"""SNIP and GraSP against their definitions, by finite differences and the explicit Hessian."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from helpers import SPARSITIES, BareRun, Toy, batches_of, image_run_of, same, text_run_of
from instant_soup.errors import UserError
from instant_soup.methods.grasp import AT_ONCE
from instant_soup.methods.registry import method_named
from instant_soup.models import memory
from instant_soup.pipeline.run import PipelineRun
from instant_soup.sparsity import masks
from instant_soup.training import gradients
from instant_soup.training.run import Run
from instant_soup.training.state import State

SIZES = (4, 6, 5, 3)
# The engine takes logits to fp32 for the loss: so exact are a double network's gradients.
CLOSE = 1e-5
Weights = dict[str, torch.Tensor]


@pytest.fixture
def toy() -> Toy:
    """A network of 69 prunable weights in double precision."""
    return Toy(*SIZES).double()


def run_of(model: Toy, batches: list[Weights]) -> BareRun:
    """A run of a toy network, whose batches are all that a criterion looks at."""
    return BareRun(model.matrices(), network=model, batches=batches)


def gradient(run: Run) -> Weights:
    """The mean gradient over all of a run's batches."""
    return gradients.mean_gradient(run, run.rows)


def hessian_product(run: Run, vector: Weights) -> Weights:
    """The Hessian over all of a run's batches, times a vector."""
    return gradients.hessian_product(run, run.rows, vector, AT_ONCE)


def mask_of(method: str, run: Run, sparsity: float) -> masks.Mask:
    """What a criterion keeps, by all of a run's batches."""
    own = {} if method == "one_shot" else {"batches": run.rows}
    return method_named(method)(**own).mask(run, sparsity)


def true_loss(model: nn.Module, batches: list[Weights]) -> Callable[[Weights], torch.Tensor]:
    """The mean loss over all rows as a function of the prunable weights, in double precision."""
    x = torch.cat([batch["x"] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    model = model.eval()

    def loss(weights: Weights) -> torch.Tensor:
        return functional.cross_entropy(functional_call(model, weights, (x,)), labels)

    return loss


def flat_gradient_and_hessian(
    loss: Callable[[Weights], torch.Tensor], weights: Weights
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss's whole gradient and Hessian over all weights as one vector and one matrix."""

    def from_flat(vector: torch.Tensor) -> torch.Tensor:
        pieces = vector.split([w.numel() for w in weights.values()])
        named = zip(weights.items(), pieces, strict=True)
        return loss({name: piece.view(w.shape) for (name, w), piece in named})

    at = flat(weights)
    return torch.func.grad(from_flat)(at), torch.func.hessian(from_flat)(at)


def flat(tensors: Any) -> torch.Tensor:
    """Tensors (or a dict of them) as one vector."""
    values = tensors.values() if isinstance(tensors, dict) else tensors
    return torch.cat([t.detach().flatten() for t in values])


def assert_keeps_largest(mask: masks.Mask, scores: torch.Tensor, tolerance: float) -> None:
    """No weight that went has a score above that of one that stayed, beyond rounding."""
    kept = flat(mask)
    assert 0 < int(kept.sum()) < len(kept)
    assert scores[kept].min() >= scores[~kept].max() - tolerance


# The definitions


@pytest.mark.parametrize("batches", [1, 3])
def test_snips_score_is_the_losss_slope_in_a_gate_on_each_weight(toy: Toy, batches: int) -> None:
    """Lee et al. 2019: |∂L(c ⊙ θ) / ∂c| at c = 1, here as a central difference."""
    weights, data = toy.matrices(), batches_of(4, 3, batches)
    loss, slopes, h = true_loss(toy, data), [], 1e-5
    for name, weight in weights.items():
        for i in range(weight.numel()):
            gate = torch.zeros(weight.numel(), dtype=torch.float64)
            gate[i] = h
            shift = weight * gate.view(weight.shape)
            up, down = (loss({**weights, name: weight + s}) for s in (shift, -shift))
            slopes.append((up - down) / (2 * h))
    slope = torch.stack(slopes).detach()
    run = run_of(toy, data)
    found = flat(gradient(run)) * flat(weights)
    torch.testing.assert_close(found, slope, rtol=CLOSE, atol=CLOSE * float(slope.abs().max()))
    for sparsity in SPARSITIES:
        mask = mask_of("snip", run, sparsity)
        assert_keeps_largest(mask, slope.abs(), CLOSE * float(slope.abs().max()))


@pytest.mark.parametrize("batches", [1, 3])
def test_grasps_score_is_that_of_the_explicit_hessian(toy: Toy, batches: int) -> None:
    """Wang et al. 2020: −θ ⊙ Hg; what has the lowest stays."""
    weights, data = toy.matrices(), batches_of(4, 3, batches)
    g, hessian = flat_gradient_and_hessian(true_loss(toy, data), weights)
    run = run_of(toy, data)
    product = hessian @ g
    tolerance = CLOSE * float(product.abs().max().detach())
    found = flat(hessian_product(run, gradient(run)))
    torch.testing.assert_close(found, product, rtol=CLOSE, atol=tolerance)
    score = -flat(weights) * product
    assert score.min() < 0 < score.max()  # the sign matters
    for sparsity in SPARSITIES:
        assert_keeps_largest(mask_of("grasp", run, sparsity), -score, tolerance)
        assert_keeps_largest(mask_of("grasp_absolute", run, sparsity), score.abs(), tolerance)


def test_what_grasp_scores_is_the_gradient_norms_change_on_removal(toy: Toy) -> None:
    """Scaling one weight by 1 − ε changes ‖g‖² by 2ε times its score, to first order."""
    weights, data = toy.matrices(), batches_of(4, 3)
    run = run_of(toy, data)
    score = -flat(weights) * flat(hessian_product(run, gradient(run)))
    loss = true_loss(toy, data)

    def squared_norm(name: str, shift: torch.Tensor) -> float:
        moved = {**weights, name: weights[name] + shift}
        return float((flat(torch.func.grad(loss)(moved)) ** 2).sum())

    h, found = 1e-5, []
    for name, weight in weights.items():
        for i in range(weight.numel()):
            shift = torch.zeros(weight.numel(), dtype=torch.float64)
            shift[i] = -h * weight.flatten()[i]
            change = squared_norm(name, shift.view(weight.shape))
            change -= squared_norm(name, -shift.view(weight.shape))
            found.append(change / (4 * h))
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), score, rtol=1e-4, atol=1e-6
    )


def test_of_grasps_two_signs_the_absolute_one_keeps_what_matters_most(toy: Toy) -> None:
    """The weight whose removal adds most to the gradient's norm goes first by the signed score."""
    run = run_of(toy, batches_of(4, 3))
    score = -flat(run.weights) * flat(hessian_product(run, gradient(run)))
    largest = int(score.argmax())
    assert not flat(mask_of("grasp", run, 0.1))[largest]
    assert flat(mask_of("grasp_absolute", run, 0.5))[largest]


def test_second_derivatives_that_do_not_fit_are_refused(toy: Toy, monkeypatch: Any) -> None:
    run = run_of(toy, batches_of(4, 3))
    monkeypatch.setattr(memory, "free_memory", lambda where: 10**9)
    hessian_product(run, gradient(run))
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    message = r"take about [\d,]+ bytes, more than the 1,000 that are free on the cpu; allowed: sma"
    with pytest.raises(UserError, match=message):
        hessian_product(run, gradient(run))


def test_a_model_whose_vectors_do_not_fit_is_refused_before_any_work(monkeypatch: Any) -> None:
    grasp = method_named("grasp")()
    monkeypatch.setattr(memory, "free_memory", lambda where: 24 * 10**6)
    grasp.check_size(10**6)
    message = r"^method: grasp takes 24,000,024 bytes for 1,000,001 prunable weights, more than"
    with pytest.raises(UserError, match=message):
        grasp.check_size(10**6 + 1)


@pytest.mark.parametrize("method", ["grasp", "grasp_absolute"])
def test_a_run_refuses_such_a_model_too(toy: Toy, monkeypatch: Any, method: str) -> None:
    """Whatever the plan could see of it; and before the first gradient."""
    monkeypatch.setattr(memory, "free_memory", lambda where: 24 * 69 - 1)
    run = run_of(toy, [])
    with pytest.raises(UserError, match=rf"^method: {method} takes 1,656 bytes for 69 prunable"):
        mask_of(method, run, 0.5)


@pytest.mark.parametrize("at_once", [1, 3000])
def test_a_batch_in_parts_is_the_whole(at_once: int, monkeypatch: Any) -> None:
    """Row by row, and by some rows: the same product, and less is held than of the whole batch.

    The forward pass by which it is known that the whole is too large is counted.
    """
    monkeypatch.setattr(BareRun, "flops", lambda *_: (10.0, 1.0))

    class InParts(BareRun):
        in_parts = PipelineRun.in_parts

    model = Toy(*SIZES).double()
    data = batches_of(4, 3)
    whole, parts = (
        kind(model.matrices(), network=model, batches=data) for kind in (BareRun, InParts)
    )
    slopes, sizes = gradient(whole), []
    wanted = flat(hessian_product(whole, slopes))
    loss = parts.loss

    def counted(network: nn.Module, batch: Any) -> torch.Tensor:
        sizes.append(len(batch["labels"]))
        return loss(network, batch)

    parts.loss = counted
    found = flat(gradients.hessian_product(parts, parts.rows, slopes, at_once))
    torch.testing.assert_close(found, wanted, rtol=CLOSE, atol=1e-8)
    rows = len(data[0]["labels"])
    first, *others = sizes[: 1 + sizes[1:].index(rows)]
    assert first == rows == sum(others) and len(others) > 1
    assert at_once > 1 or others == [1] * rows
    assert whole.cost.flops == 3 * (3 + 9) * 11 and parts.cost.flops == 3 * (1 + 9) * 11


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_the_two_criteria_and_magnitude_are_different_things(toy: Toy, method: str) -> None:
    run = run_of(toy, batches_of(4, 3))
    found = {name: mask_of(name, run, 0.5) for name in ("snip", "grasp", "one_shot")}
    assert not same(found["snip"], found["grasp"])
    assert not same(found[method], found["one_shot"])


# Accumulation


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_batch_by_batch_is_all_rows_at_once(toy: Toy, method: str) -> None:
    data = batches_of(4, 3, 4)
    whole = [{key: torch.cat([batch[key] for batch in data]) for key in data[0]}]
    split, joined = (run_of(toy, batches) for batches in (data, whole))
    for function in (gradient, lambda run: hessian_product(run, gradient(run))):
        one, other = flat(function(split)), flat(function(joined))
        torch.testing.assert_close(one, other, rtol=CLOSE, atol=1e-8)
    assert same(mask_of(method, split, 0.5), mask_of(method, joined, 0.5))


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_the_memory_is_that_of_few_batches_however_many_there_are(toy: Toy, method: str) -> None:
    """Counts what autograd holds on to at once, through its own hooks."""

    class Held:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    def most_held(batches: int) -> int:
        alive: weakref.WeakSet[Held] = weakref.WeakSet()
        most = 0

        def pack(tensor: torch.Tensor) -> Held:
            nonlocal most
            held = Held(tensor)
            alive.add(held)
            most = max(most, len(alive))
            return held

        run = run_of(toy, batches_of(4, 3, batches))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
            mask_of(method, run, 0.5)
        return most

    assert most_held(1) > 0
    assert most_held(2) == most_held(10) <= 2 * most_held(1)


# The network


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_dropout_has_no_say(method: str) -> None:
    data = batches_of(4, 3)
    found = []
    for dropout, seed in ((0.0, 1), (0.6, 2), (0.6, 3)):
        model = Toy(*SIZES, dropout=dropout).double().train()
        torch.manual_seed(seed)
        found.append(mask_of(method, run_of(model, data), 0.5))
    assert same(found[0], found[1]) and same(found[1], found[2])


@pytest.fixture(params=["bert", "clip"])
def network(request: pytest.FixtureRequest) -> BareRun:
    """A run of a tiny BERT or CLIP."""
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return {"bert": text_run_of, "clip": image_run_of}[request.param](folder)


def test_every_prunable_matrix_of_a_transformer_has_its_scores(network: BareRun) -> None:
    weights = network.weights
    packed = [name for name in weights if "in_proj" in name or "out_proj" in name]
    assert len(weights) == 12 or (len(weights) == 8 and len(packed) == 4)
    slopes = gradient(network)
    for tensors in (slopes, hessian_product(network, slopes)):
        assert tensors.keys() == weights.keys()
        for name, tensor in tensors.items():
            assert tensor.shape == weights[name].shape and tensor.isfinite().all()
            assert (tensor != 0).float().mean() > 0.99, name


def test_a_transformers_hessian_product_is_the_gradients_change(network: BareRun) -> None:
    """Through softmax, norms and GELU: (g(θ + hv) − g(θ − hv)) / 2h, in double precision."""
    model = network.given
    model.double()
    if hasattr(model, "head"):
        model.head = model.head.float()  # as it is in any precision
    network.state = State({name: w.detach().clone() for name, w in model.state_dict().items()})
    slopes = gradient(network)
    v = {name: slope / flat(slopes).norm() for name, slope in slopes.items()}
    product = hessian_product(network, v)
    h, sides, at = 3e-3, [], network.weights
    for sign in (1, -1):
        network.state.weights |= {name: w + sign * h * v[name] for name, w in at.items()}
        sides.append(flat(gradient(network)))
    expected = (sides[0] - sides[1]) / (2 * h)
    assert (flat(product) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_the_network_is_left_as_it_was(network: BareRun, method: str) -> None:
    model = network.given
    before = {name: w.clone() for name, w in model.state_dict().items()}
    one = mask_of(method, network, 0.7)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert all(torch.equal(w, before[name]) for name, w in network.state.weights.items())
    assert all(p.grad is None for p in model.parameters())
    model.train()  # dropout would be on; other numbers would be drawn
    torch.manual_seed(77)
    assert same(mask_of(method, network, 0.7), one)
    kept, total = masks.count(one)
    assert total - kept == round(0.7 * total)


def test_a_planted_dead_input_goes_first_with_snip(toy: Toy) -> None:
    """Weights that read nothing have no slope, however large they are."""
    with torch.no_grad():
        toy.layers[0].weight[:, 2] = 100.0
    data = batches_of(4, 3)
    for batch in data:
        batch["x"][:, 2] = 0.0
    mask = mask_of("snip", run_of(toy, data), 0.2)
    assert not mask["layers.0.weight"][:, 2].any()
    assert int((~torch.cat([m.flatten() for m in mask.values()])).sum()) == 14
