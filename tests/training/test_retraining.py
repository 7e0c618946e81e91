"""Retraining of few parameters: what trains, by hand; adapters, by hand and to the bit."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import instant_soup
from helpers import (
    PRUNE_SETTINGS,
    Weights,
    assert_same_weights,
    bert_settings,
    copied,
    loader,
    loss,
    new_classifier,
    perceptron,
    random_texts,
)
from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.models import bert, clip, matrices
from instant_soup.models.forward import forward_flops
from instant_soup.models.head import Head
from instant_soup.sparsity import masks, scores
from instant_soup.training import loop, retraining
from instant_soup.training.cost import Cost
from instant_soup.training.pruner import FixedMask
from instant_soup.training.retraining import MaskLora, merged, small_parameters
from instant_soup.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

WEIGHT = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
COLUMN, ROW = torch.ones(2, 1), torch.ones(1, 2)


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ([[1, 0], [1, 1]], [[2, 0], [3, 4]]),
        ([[1, 1], [1, 1]], [[2, 1], [3, 4]]),  # a kept weight that happens to be zero moves
        ([[0, 1], [1, 1]], [[1, 1], [3, 4]]),
    ],
)
def test_a_change_is_within_the_mask(mask: Any, wanted: Any) -> None:
    found = merged(WEIGHT, torch.tensor(mask, dtype=torch.float32), COLUMN, ROW, 1.0)
    assert found.tolist() == wanted
    assert merged(WEIGHT, None, COLUMN, ROW, 0.5).tolist() == [[1.5, 0.5], [2.5, 3.5]]


class One(nn.Module):
    """A matrix that the loss is linear in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(WEIGHT.clone()), nn.Parameter(torch.zeros(2))


def test_an_adapters_gradients_are_those_of_the_loss() -> None:
    # L = Σ G ⊙ (W + s M ⊙ (BA)): dL/dB = s (M ⊙ G) Aᵀ, dL/dA = s Bᵀ (M ⊙ G); s = 4 / 2.
    module, mask = One(), {"weight": torch.tensor([[True, False], [True, True]])}
    pruner = MaskLora(mask, {"weight": WEIGHT}, rank=2, alpha=4.0, seed=0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)
    b, a = torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    pruner.attach(dict(module.named_parameters()), optimizer,
                  {"lora.b.weight": b, "lora.a.weight": a})  # fmt: skip
    slope = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    (slope * module.weight).sum().backward()
    assert module.weight.grad is None
    (of_b, of_a) = (tensor.grad for tensor in pruner.adapters["weight"])
    assert of_b.tolist() == [[2.0, 0.0], [10.0, 18.0]]
    assert of_a.tolist() == [[10.0, 12.0], [4.0, 6.0]]
    pruner.after_step(0)
    assert module.weight.tolist() == [[3.0, 0.0], [6.0, 13.0]]
    pruner.release()
    module.weight.sum().backward()
    assert module.weight.grad is not None


def test_an_adapter_changes_nothing_at_first_and_is_drawn_for_each_matrix_and_seed() -> None:
    """A is uniform between -1/√100 and 1/√100."""
    weights = {name: nn.Parameter(torch.zeros(5, 100)) for name in "vw"}
    drawn = []
    for seed in (0, 1):
        pruner = MaskLora(masks.full(weights), weights, rank=8, alpha=16.0, seed=seed)
        pruner.attach(weights, torch.optim.AdamW(weights.values()), {})
        assert not any(b.any() for b, _ in pruner.adapters.values())
        drawn += [a.detach() for _, a in pruner.adapters.values()]
        pruner.release()
    for one, other in itertools.combinations(drawn, 2):
        assert not torch.equal(one, other)
    for a in drawn:
        assert a.abs().max() <= 0.1 and a.min() < -0.09 and a.max() > 0.09


@pytest.mark.parametrize("retrain", ["norms_and_biases", "mask_lora"])
def test_the_last_phase_has_its_rate_and_no_moments_of_what_is_frozen(retrain: str) -> None:
    recipe = replace(RECIPE, retrain=retrain)
    assert retraining.at_its_rate(recipe).learning_rate == pytest.approx(2 * 5e-3)
    assert retraining.at_its_rate(replace(recipe, retrain="all")).learning_rate == 5e-3
    module = One()
    first, second = ({n: torch.ones_like(p) for n, p in module.named_parameters()} for _ in "mv")
    state = State(dict(module.state_dict()), first, second, step=3)
    mask = {"weight": torch.tensor([[True, False], [True, True]])}
    with retraining.only_some(module, state, FixedMask(mask), recipe):
        assert state.first_moments.keys() == state.second_moments.keys() == {"bias"}
        assert module.weight.requires_grad == (retrain == "mask_lora")
    assert module.weight.requires_grad


def test_what_trains_of_a_text_classifier(tiny_bert: Path) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    pruned = list(matrices.prunable(model))
    names = small_parameters(model, pruned)
    frozen = {name for name, _ in model.named_parameters()} - names - set(pruned)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in frozen} == {
        *("word_embeddings", "position_embeddings", "token_type_embeddings")
    }
    assert {"classifier.weight", "bert.pooler.dense.weight"} < names
    model.classifier.weight.requires_grad_(False)
    assert "classifier.weight" not in small_parameters(model, pruned)
    # Where a part of the blocks is pruned, the other part is no head.
    assert small_parameters(model, pruned[:1]) == names - {"classifier.weight"}


def test_what_trains_of_an_image_tower_and_what_stays(tiny_clip: Path) -> None:
    weights = clip.random_weights(tiny_clip, Head(classes=["a", "b"], templates=["a {}"]))
    model = clip.classifier(tiny_clip, weights)
    mask = masks.full(matrices.prunable(model))
    assert all(p.ndim <= 1 for n, p in model.named_parameters()
               if n in small_parameters(model, mask))  # fmt: skip
    before = {name: w.clone() for name, w in weights.items()}
    mask = scores.magnitude({name: before[name] for name in mask}, 0.5)
    state, recipe = State(weights), replace(RECIPE, retrain="mask_lora", lora_rank=2)
    state.prune(mask)
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    batch = {"images": images.to(torch.uint8), "labels": torch.tensor([0, 1, 0, 1])}
    pruner = retraining.pruner_of(recipe, mask, state.weights)
    with retraining.only_some(model, state, pruner, recipe):
        loop.take_steps(
            model, state, pruner, ((step, batch) for step in range(3)),
            lambda one: loop.loss_of(loop.logits_of(model, one), one["labels"]), None,
            recipe, Cost(), last=3, total=3, label="test",
        )  # fmt: skip
    for name, after in model.state_dict().items():
        if name in mask:
            assert not after[~mask[name]].any()
            assert (after != before[name])[mask[name]].float().mean() > 0.9, name
        else:
            assert torch.equal(after, before[name]) == (after.ndim > 1), name


RECIPE = Recipe(learning_rate=5e-3, batch_size=8, seed=3, precision="fp32", retrain_rate=2.0)


def retrained(base: Path, retrain: str) -> tuple[State, State, masks.Mask, Cost]:
    """A pruned network before and after five steps, its mask, and what they cost."""
    start = State(dict(new_classifier(base, 2, 0).state_dict()))
    model = bert.classifier(base, start.weights, **bert_settings(2, 0.1))
    mask = scores.magnitude({n: w.detach() for n, w in matrices.prunable(model).items()}, 0.6)
    start.prune(mask)
    recipe, before, cost = replace(RECIPE, retrain=retrain, lora_rank=3), copied(start), Cost()
    pruner = retraining.pruner_of(recipe, mask, start.weights)
    with retraining.only_some(model, start, pruner, recipe):
        state = loop.train(
            model, start, pruner, random_texts(), recipe, cost, last=5, total=5, label="test"
        )
    assert all(p.requires_grad for p in model.parameters())
    return before, copied(state), mask, cost


def test_biases_norms_and_head_alone_train_and_a_third_of_the_pruned_products_is_saved(
    tiny_bert: Path,
) -> None:
    before, state, mask, cost = retrained(tiny_bert, "norms_and_biases")
    _, _, _, of_all = retrained(tiny_bert, "all")
    names = small_parameters(new_classifier(tiny_bert, 2, 0), mask)
    same = {name for name, w in state.weights.items() if torch.equal(w, before.weights[name])}
    assert same == state.weights.keys() - names
    assert state.first_moments.keys() == state.second_moments.keys() == names
    model, texts = new_classifier(tiny_bert, 2, 0), random_texts()
    batch = texts.rows(torch.arange(8))
    inside, others = forward_flops(model, mask, batch)
    recipe = replace(RECIPE, retrain="norms_and_biases")
    assert retraining.step_flops(recipe, inside, others, 2, 8) == (
        2 * inside + 3 * others,
        2 * inside / 4 + 3 * others,
    )
    assert 2 / 3 < cost.flops / of_all.flops < 1 and cost.sparse_flops < of_all.sparse_flops


def test_adapters_train_what_is_kept_and_cost_their_products(tiny_bert: Path) -> None:
    before, state, mask, cost = retrained(tiny_bert, "mask_lora")
    _, _, _, of_all = retrained(tiny_bert, "all")
    names = small_parameters(new_classifier(tiny_bert, 2, 0), mask)
    assert state.first_moments.keys() == names  # none of a matrix
    for name, kept in mask.items():
        change = state.weights[name] - before.weights[name]
        assert not state.weights[name][~kept].any() and not change[~kept].any()
        assert (change != 0)[kept].float().mean() > 0.9
    kept, total = masks.count(mask)
    assert cost.flops - of_all.flops == pytest.approx(5 * 6 * 3 * total)
    assert cost.sparse_flops - of_all.sparse_flops == pytest.approx(5 * 6 * 3 * kept)


def test_adapters_are_clipped_with_all_that_trains(tiny_bert: Path, monkeypatch: Any) -> None:
    clip, clipped = nn.utils.clip_grad_norm_, []

    def watched(parameters: list[torch.Tensor], most: float) -> torch.Tensor:
        clipped.append(sum(p.grad is not None for p in parameters))
        return clip(parameters, most)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", watched)
    _, state, mask, _ = retrained(tiny_bert, "mask_lora")
    assert clipped == [len(state.first_moments) + 2 * len(mask)] * 5


def weights_of(model: nn.Module) -> Weights:
    return {name: w.clone() for name, w in model.state_dict().items()}


PARTIAL: dict[str, dict[str, Any]] = {
    "norms_and_biases": {"retrain": "norms_and_biases"},
    "mask_lora": {"retrain": "mask_lora", "lora_rank": 2, "retrain_rate": 3.0},
}


@pytest.mark.parametrize("retrain", PARTIAL)
@pytest.mark.parametrize("method", ["isp_plus", "one_shot", "movement"])
def test_one_call_prunes_as_ever_and_retrains_in_part(method: str, retrain: str) -> None:
    settings = {n: PRUNE_SETTINGS[n] for n in ("steps", "learning_rate", "sparsity", "precision")}
    call = {**settings, "method": method}
    whole = instant_soup.prune(perceptron(), loader(), loss, **call)
    found = instant_soup.prune(perceptron(), loader(), loss, **call, **PARTIAL[retrain])
    assert all(torch.equal(kept, whole.mask[name]) for name, kept in found.mask.items())
    for name, kept in found.mask.items():
        parameter = found.model.get_parameter(name)
        assert not parameter[~kept].any()
        assert parameter.requires_grad and not parameter._post_accumulate_grad_hooks
    one, other = weights_of(whole.model), weights_of(found.model)
    assert not any(torch.equal(w, other[name]) for name, w in one.items())
    if (method, retrain) == ("one_shot", "norms_and_biases"):
        for name, w in perceptron().named_parameters():
            pruned = w * found.mask.get(name, 1)
            assert torch.equal(other[name], pruned) == (name in found.mask), name


@pytest.mark.parametrize("retrain", PARTIAL)
@pytest.mark.parametrize("stop", [2, 21])
def test_a_stopped_call_goes_on_to_the_bit(tmp_path: Path, retrain: str, stop: int) -> None:
    call = {**PRUNE_SETTINGS, "method": "isp_plus", **PARTIAL[retrain]}
    call = {name: value for name, value in call.items() if name not in ("denoisers", "look_ahead")}
    whole = instant_soup.prune(perceptron(), loader(), loss, **call)
    calls = [0]

    def stopping(model: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        instant_soup.prune(perceptron(), loader(), stopping, checkpoint=tmp_path, **call)
    done = calls[0] - 1
    assert done == stop - 1
    found = instant_soup.prune(perceptron(), loader(), stopping, checkpoint=tmp_path, **call)
    assert calls[0] - 1 - done == PRUNE_SETTINGS["steps"] - done  # no step was taken twice
    assert_same_weights(weights_of(whole.model), weights_of(found.model))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"retrain": "some"}, ["retrain: 'some'", "all | norms_and_biases | mask_lora"]),
        ({"lora_rank": 4}, ["lora_rank: 4 is for retrain: mask_lora", "None"]),
        ({"retrain": "norms_and_biases", "lora_alpha": 4.0}, ["lora_alpha: 4.0 is for"]),
        ({"retrain_rate": 4.0}, ["retrain_rate: 4.0 is for", "norms_and_biases | mask_lora"]),
        ({"retrain": "mask_lora", "lora_rank": 0}, ["lora_rank: 0", "a whole number"]),
        ({"retrain": "mask_lora", "method": "sparse_soup"}, ["sparse_soup trains nothing after"]),
        ({"retrain": "mask_lora", "method": "smp"}, ["smp trains nothing after", "allowed: all"]),
    ],
)
def test_a_mistake_about_retraining_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    call = {"steps": 8, "learning_rate": 1e-3, "method": "one_shot", **settings}
    with pytest.raises(UserError) as caught:
        instant_soup.prune(perceptron(), loader(), loss, **call)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_network_with_nothing_but_matrices_is_refused() -> None:
    bare = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False))
    with pytest.raises(UserError, match="retrain: this network has no biases, norms or head"):
        instant_soup.prune(
            bare, loader(), loss, steps=8, learning_rate=1e-3, method="one_shot",
            retrain="mask_lora", prunable=lambda name, _: True,
        )  # fmt: skip
