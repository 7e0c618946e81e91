"""Wanda, SparseGPT and MULTIFLOW: answers by hand, whose inputs they see, and exact counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import instant_soup
from helpers import (
    BareRun,
    Toy,
    assert_pruned,
    batches_of,
    image_run_of,
    loader,
    loss,
    make_project,
    perceptron,
    run_script,
    text_run_of,
)
from instant_soup.errors import UserError
from instant_soup.methods.multiflow import Multiflow, by_magnitude, flow
from instant_soup.methods.sparsegpt import SparseGPT
from instant_soup.methods.wanda import Wanda
from instant_soup.models import memory
from instant_soup.pipeline.workspace import START, load_start, load_ticket
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.sparse_gpt import factor, sweep
from instant_soup.training import activations

pytestmark = pytest.mark.usefixtures("one_thread")
Weights = dict[str, torch.Tensor]

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("wanda", {}),
    ("wanda", {"scope": "global"}),
    ("sparsegpt", {}),
    ("sparsegpt", {"scope": "global"}),
    ("sparsegpt", {"update": False}),
    ("multiflow", {}),
]

# By hand


def seeing(monkeypatch: pytest.MonkeyPatch, **moments: torch.Tensor) -> None:
    """Let matrices have multiplied inputs with these second moments."""
    squares = {name: h.diagonal() for name, h in moments.items()}
    monkeypatch.setattr(activations, "second_moments", lambda run, batches: dict(moments))
    monkeypatch.setattr(activations, "mean_squares", lambda run, batches: squares)


def test_wanda_weighs_by_the_inputs_within_each_row(monkeypatch) -> None:
    seeing(monkeypatch, w=torch.tensor([16.0, 1.0]).diag())
    run = BareRun({"w": torch.tensor([[1.0, 2.0], [3.0, 1.0]])})
    assert Wanda().scores(run)["w"].tolist() == [[4, 2], [12, 1]]
    rows = Wanda(scope="row").mask(run, 0.5)["w"]
    assert rows.tolist() == [[True, False], [True, False]]
    assert Wanda(scope="global").mask(run, 0.75)["w"].tolist() == [[False, False], [True, False]]


def test_multiflow_weighs_by_the_flow_through_both_nodes() -> None:
    found = flow(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2))
    assert found.tolist() == [[3, 9], [21, 42]]


def test_sparsegpt_moves_a_weight_to_the_least_squares_solution(monkeypatch) -> None:
    h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    upper = factor(h, damping=0.0)
    torch.testing.assert_close(upper.diagonal().square(), torch.tensor([2 / 3, 0.5]).double())
    seen = []

    def choose(i: int, costs: torch.Tensor) -> torch.Tensor:
        seen.append(costs)
        return masks.largest(costs.flatten(), 1).view(costs.shape)

    kept, moved = sweep(torch.ones(1, 2), upper, choose)
    torch.testing.assert_close(seen[0], torch.tensor([[1.5, 2.0]]).double())
    assert kept.tolist() == [[False, True]]
    torch.testing.assert_close(moved, torch.tensor([[0.0, 1.5]]).double())


def test_damping_is_a_hundredth_of_the_mean_moment() -> None:
    """Of 4, 1 and 1 the mean is 2: 1 / 4.02 and 1 / 1.02."""
    found = factor(torch.tensor([4.0, 1.0, 1.0]).diag()).diagonal().square()
    assert found.tolist() == pytest.approx([1 / 4.02, 1 / 1.02, 1 / 1.02])


def test_each_block_is_settled_on_what_those_before_it_have_left() -> None:
    """By blocks of two columns against removals one after the other on the whole matrix."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(40, 7, generator=draws, dtype=torch.float64)
    h, w = x.T @ x, torch.randn(3, 7, generator=draws, dtype=torch.float64)
    wanted = torch.rand(3, 7, generator=draws) > 0.5
    _, moved = sweep(w, factor(h, 0.0), lambda i, costs: wanted[:, 2 * i : 2 * i + 2], width=2)
    expected = w.clone()
    for j in range(7):
        inverse = torch.linalg.inv(h[j:, j:])  # of the columns that are not settled
        error = expected[:, j].where(~wanted[:, j], 0.0) / inverse[0, 0]
        expected[:, j:] -= error[:, None] * inverse[0]
    torch.testing.assert_close(moved, expected.where(wanted, 0.0))


def test_with_inputs_apart_sparsegpt_ranks_as_wanda_squared_and_moves_nothing(monkeypatch) -> None:
    draws = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(6, 200, generator=draws)}
    seeing(monkeypatch, w=(0.1 + torch.rand(200, generator=draws)).diag())
    found = SparseGPT().mask(BareRun(weights), 0.6)
    for here in (slice(0, 128), slice(128, 200)):
        # Damping adds the same to all features.
        worth = weights["w"][:, here].square() * activations_of(here)
        own = scores.best({"w": worth}, 0.6)["w"]
        assert int((own ^ found.mask["w"][:, here]).sum()) <= 2  # a block's share is rounded
    assert torch.equal(found.weights["w"], weights["w"] * found.mask["w"])


def activations_of(here: slice) -> torch.Tensor:
    squares = activations.mean_squares(None, 0)["w"]  # type: ignore[arg-type]
    return (squares + 0.01 * squares.mean())[here]


@pytest.mark.parametrize("scope", ["block", "global"])
def test_the_update_keeps_the_outputs_nearer(monkeypatch, scope: str) -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(500, 30, generator=draws) @ torch.randn(30, 30, generator=draws)
    weights = {"w": torch.randn(20, 30, generator=draws)}
    seeing(monkeypatch, w=x.T @ x / 500)
    run = BareRun(weights)
    moved = SparseGPT(scope=scope).mask(run, 0.5)
    plain = SparseGPT(scope=scope, update=False).mask(run, 0.5)
    assert isinstance(moved, masks.Cut) and not isinstance(plain, masks.Cut)
    assert torch.equal(moved.mask["w"], plain["w"])
    full = x @ weights["w"].T
    errors = [
        (x @ w.T - full).square().mean() for w in (moved.weights["w"], weights["w"] * plain["w"])
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("kind", [Wanda, SparseGPT, Multiflow])
def test_what_multiplies_nothing_goes_first(monkeypatch, kind: Any) -> None:
    draws = torch.Generator().manual_seed(0)
    weights = {"w": torch.randn(8, 12, generator=draws)}
    weights["w"][:, 3] = 100.0
    squares = 0.1 + torch.rand(12, generator=draws)
    squares[3] = 0.0
    seeing(monkeypatch, w=squares.diag())
    run = BareRun(weights)
    found = kind().mask(run, 1 / 12)
    mask = found.mask if isinstance(found, masks.Cut) else found
    if kind is Multiflow:  # whose budgets are magnitude's
        assert int((~mask["w"]).sum()) == 8
    assert not mask["w"][:, 3].any() and mask["w"].sum() == 88
    seeing(monkeypatch, w=torch.zeros(12, 12))  # a layer that sees nothing at all
    kind().mask(run, 0.5)


@pytest.mark.parametrize("kind", [Wanda, SparseGPT, Multiflow])
def test_the_order_of_outputs_has_no_say(monkeypatch, kind: Any) -> None:
    draws = torch.Generator().manual_seed(0)
    weight, order = torch.randn(8, 12, generator=draws), torch.randperm(8, generator=draws)
    x = torch.randn(50, 12, generator=draws)
    seeing(monkeypatch, w=x.T @ x / 50)
    found = [kind().mask(BareRun({"w": w}), 0.5) for w in (weight, weight[order])]
    one, other = (f.mask["w"] if isinstance(f, masks.Cut) else f["w"] for f in found)
    assert torch.equal(one[order], other) and not torch.equal(one, other)


def test_budgets_are_magnitudes_within_each_stack() -> None:
    draws = torch.Generator().manual_seed(0)
    weights = {
        f"{stack}.{i}.w": scale * torch.randn(5, 7, generator=draws)
        for stack, scale in (("visual.blocks", 1.0), ("text.blocks", 100.0))
        for i in range(3)
    }
    kept = by_magnitude(weights, 0.6)
    for stack in ("visual", "text"):
        own = {n: w for n, w in weights.items() if n.startswith(stack)}
        assert sum(kept[n] for n in own) == 42
        expected = scores.magnitude(own, 0.6)
        assert {n: kept[n] for n in own} == {n: int(m.sum()) for n, m in expected.items()}


# Whose inputs


def hooked(run: BareRun, module: nn.Module, take: Any) -> list[torch.Tensor]:
    """What `take` makes of a module's inputs and outputs over the run's batches."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, args, out: seen.append(take(args, out)))
    assert run.given is not None
    network = run.given.eval()
    with torch.no_grad():
        for batch in run.rows_of:
            run.loss(network, batch)
    hook.remove()
    return seen


def test_inputs_are_those_of_real_tokens(tiny_bert: Path) -> None:
    run = text_run_of(tiny_bert)
    squares = activations.mean_squares(run, 3)
    moments = activations.second_moments(run, 3)
    assert squares.keys() == moments.keys() == run.mask.keys()
    for name in run.mask:
        module = run.given.get_submodule(name.removesuffix(".weight"))
        seen = hooked(run, module, lambda args, out: args[0])
        own = [x[b["attention_mask"].bool()] for x, b in zip(seen, run.rows_of, strict=True)]
        x = torch.cat(own)
        torch.testing.assert_close(squares[name], x.square().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moments[name], x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_padding_has_no_say(tiny_bert: Path) -> None:
    one, other = (activations.mean_squares(text_run_of(tiny_bert, p), 3) for p in (0, 9))
    for name, squares in one.items():
        torch.testing.assert_close(squares, other[name], rtol=1e-4, atol=1e-6)


def test_images_have_inputs_of_fused_projections_too(tiny_clip: Path) -> None:
    """What reaches out_proj is solved for from what comes out of it."""
    run = image_run_of(tiny_clip)
    squares = activations.mean_squares(run, 3)
    assert squares.keys() == run.mask.keys() and len(run.mask) == 8
    for name in (n for n in run.mask if n.endswith("in_proj_weight")):
        module = run.given.get_submodule(name.removesuffix(".in_proj_weight"))
        x = torch.cat(hooked(run, module, lambda args, out: args[0])).flatten(0, 1)
        torch.testing.assert_close(squares[name], x.square().mean(0), rtol=1e-4, atol=1e-6)
        out = torch.cat(hooked(run, module, lambda args, out: out[0])).flatten(0, 1)
        inner = module.out_proj
        before = torch.linalg.solve(inner.weight.double(), (out - inner.bias).double().T).T
        own = squares[name.replace("in_proj_weight", "out_proj.weight")]
        torch.testing.assert_close(own, before.square().mean(0).float(), rtol=1e-3, atol=1e-6)


class Attending(nn.Module):
    """Tokens in a stack of torch's own blocks: one kernel for all of a block, unless watched."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

    def forward(self, batch: Weights) -> torch.Tensor:
        padded = batch["attention_mask"] == 0
        return self.blocks(batch["x"], src_key_padding_mask=padded)


def test_torchs_own_attention_has_its_padding_left_out() -> None:
    model, x = Attending(), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def error(model: nn.Module, batch: Weights) -> torch.Tensor:
        return model(batch)[batch["attention_mask"].bool()].square().mean()

    def masks_of(pad: float) -> masks.Mask:
        batch = {"x": x.where(mask[:, :, None] == 1, pad), "attention_mask": mask}
        pruned = instant_soup.prune(
            Attending(), [batch], error, steps=1, learning_rate=1e-9, method="wanda",
            sparsity=0.5, precision="fp32",
        )  # fmt: skip
        return pruned.mask

    one, other = masks_of(0.0), masks_of(1e3)
    assert len(one) == 8 and all(torch.equal(kept, other[n]) for n, kept in one.items())
    assert torch.backends.mha.get_fastpath_enabled() and functional.linear is LINEAR
    model.train()


LINEAR = functional.linear


def test_each_batch_costs_a_forward_pass(monkeypatch) -> None:
    model = Toy(4, 6, 5, 3).double()
    run = BareRun(model.matrices(), network=model, batches=batches_of(4, 3, 5))
    monkeypatch.setattr(BareRun, "flops", lambda *_: (10.0, 1.0))
    activations.mean_squares(run, 4)
    assert run.cost.flops == 4 * 11


def test_what_multiplies_nothing_in_the_batches_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 2))

    def error(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0][:, None]), batch[1])

    with pytest.raises(
        UserError, match=r"^prunable: 1\.weight is the weight of no linear map that"
    ):
        instant_soup.prune(
            model, loader(), error, steps=3, learning_rate=1e-3, method="wanda",
            prunable=lambda name, p: p.ndim > 1,
        )  # fmt: skip
    assert functional.linear is LINEAR


def test_inputs_that_the_attention_mask_does_not_fit_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x[:, ::2]).mean(1))

    batch = {"x": torch.randn(3, 6, 8), "attention_mask": torch.ones(3, 6)}
    with pytest.raises(UserError, match=r"^batches: a\.weight multiplies 9 rows, .* 18 tokens"):
        instant_soup.prune(
            Mean(), [batch], lambda m, b: m(b["x"]).square().mean(), steps=3, learning_rate=1e-3,
            method="multiflow",
        )  # fmt: skip


# In a run


def prune(method: str, **own: Any) -> instant_soup.Pruned:
    given = {"steps": 4, "learning_rate": 3e-3, "precision": "fp32", "calibration_batches": 3}
    return instant_soup.prune(perceptron(), loader(), loss, method=method, **{**given, **own})


@pytest.mark.parametrize("sparsity", [0.371, 0.6, 0.949])
@pytest.mark.parametrize(("method", "own"), KINDS)
def test_it_prunes_to_the_weight(method: str, own: dict[str, Any], sparsity: float) -> None:
    pruned = prune(method, sparsity=sparsity, **own)
    assert_pruned(pruned, sparsity)
    if own.get("scope", "row") == "row" and method == "wanda":
        for name, mask in pruned.mask.items():
            spread = mask.sum(1)
            assert spread.max() - spread.min() <= 1, name


def test_moved_weights_come_through_every_door(tmp_path: Path) -> None:
    """One step at almost no rate: what is left are the weights as the cut has them."""
    still: dict[str, Any] = {"learning_rate": 1e-12, "steps": 1, "sparsity": 0.6}
    whole = prune("sparsegpt", **still)
    plain = prune("sparsegpt", update=False, **still)
    model = perceptron()
    pruner = instant_soup.Pruner(
        model, torch.optim.AdamW(model.parameters(), lr=1e-12), method="sparsegpt", steps=1,
        sparsity=0.6, batches=loader(), loss=loss, calibration_batches=3,
    )  # fmt: skip
    for name, kept in whole.mask.items():
        assert torch.equal(kept, plain.mask[name]) and torch.equal(kept, pruner.mask[name])
        one, other, own = (
            m.get_parameter(name).detach() for m in (whole.model, plain.model, model)
        )
        torch.testing.assert_close(one, own)
        assert not torch.allclose(one[kept], other[kept])


def test_what_does_not_fit_is_refused_before_any_pass(monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    message = r"^method: sparsegpt takes 37,120 bytes .* 2 matrices, more than the 1,000 that are"
    with pytest.raises(UserError, match=message):
        prune("sparsegpt", sparsity=0.5)
    prune("wanda", sparsity=0.5)


def test_a_ticket_of_the_pipeline_has_the_moved_weights(
    tiny_bert: Path, tiny_data: Path, tmp_path: Path, monkeypatch
) -> None:
    training = {"epochs": 1, "batch_size": 16, "precision": "fp32", "learning_rate": 1e-12}
    make_project(
        tmp_path, tiny_bert, tiny_data, methods=["sparsegpt"], sparsity=0.5, training=training
    )
    monkeypatch.chdir(tmp_path)
    run_script("find_ticket", "--method", "sparsegpt")
    start, _ = load_start(START)
    state, mask, found, *_ = load_ticket("models/tickets/sparsegpt/found", START)
    kept, total = masks.count(mask)
    assert total == 2 * kept and found.flops > 0 and found.steps == 0 and state.step == 0
    for name, here in mask.items():
        w, before = state.weights[name], start.weights[name]
        assert torch.equal(w != 0, here) and (w != before)[here].float().mean() > 0.9
    run_script("sparse_retrain", "--method", "sparsegpt")
    trained = load_file("models/retrained/sparsegpt/state/weights.safetensors")
    for name in mask:
        torch.testing.assert_close(trained[name], state.weights[name])
