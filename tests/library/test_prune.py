"""instant_soup.prune on models of one's own: exact sparsity, zeros that stay, resume, its parts."""

import copy
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional

import instant_soup
from helpers import PRUNE_SETTINGS, BareRun, loader, loss, new_classifier, perceptron, products
from instant_soup.errors import UserError
from instant_soup.library import model as model_of
from instant_soup.library import prune as prune_module
from instant_soup.library import run, settings
from instant_soup.methods.custom import Custom
from instant_soup.methods.grasp import GraSP
from instant_soup.methods.isp import ISP
from instant_soup.methods.registry import methods
from instant_soup.methods.snip import SNIP
from instant_soup.methods.soups import InstantModelSoup
from instant_soup.sparsity import masks, scores
from instant_soup.training import loop
from instant_soup.training.checkpoints import Record
from instant_soup.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread")


def zeros(model: nn.Module, mask: masks.Mask) -> bool:
    """Whether every pruned weight is exactly zero, and no other."""
    parameters = dict(model.named_parameters())
    return all(torch.equal(parameters[name] != 0, kept) for name, kept in mask.items())


class Remembers(nn.Module):
    """Keeps an activation, and a module with state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.noted = perceptron(), Noted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.body(x)
        return self.last


class Noted(nn.Module):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"version": 3}


def test_a_model_that_keeps_an_activation_and_extra_state_is_pruned() -> None:
    model = Remembers()
    pruned = instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    assert zeros(model, pruned.mask)


def test_random_numbers_outside_stay_as_they_were() -> None:
    model, batches = perceptron(), loader()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    instant_soup.prune(model, batches, loss, **PRUNE_SETTINGS)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("method", ["layerwise", "granet"])
def test_channels_last_weights_that_tie_are_ranked(method: str) -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 2)
    )
    for parameter in net.parameters():
        parameter.data = parameter.data.sign()
    net = net.to(memory_format=torch.channels_last)
    batches = [(torch.randn(4, 4, 6, 6), torch.tensor([0, 1, 0, 1])) for _ in range(3)]

    def own(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    more = {"every": 2} if method == "granet" else {}
    settings = {"steps": 6, "learning_rate": 1e-3, "sparsity": 0.5, "method": method, **more}
    pruned = instant_soup.prune(net, batches, own, **settings)
    assert pruned.sparsity == 0.5


@pytest.mark.parametrize("kind", ["gpt2", "convolution"])
def test_n_of_m_groups_inputs_wherever_they_are(kind: str) -> None:
    """GPT-2's matrices are inputs × outputs; a convolution's inputs are its second dimension."""
    from transformers.pytorch_utils import Conv1D

    first = Conv1D(12, 8) if kind == "gpt2" else nn.Conv2d(8, 12, 1)
    shape = (4, 8) if kind == "gpt2" else (4, 8, 1, 1)
    net = nn.Sequential(first, nn.Flatten(), nn.Linear(12, 2))
    batches = [(torch.randn(shape), torch.tensor([0, 1, 0, 1])) for _ in range(2)]
    pruned = instant_soup.prune(
        net, batches, lambda m, b: functional.cross_entropy(m(b[0]), b[1]),
        steps=2, learning_rate=1e-3, sparsity=0.5, method="n_of_m",
        prunable=lambda name, p: name == "0.weight",
    )  # fmt: skip
    kept = pruned.mask["0.weight"]
    rows = kept.T if kind == "gpt2" else kept.flatten(1)
    assert rows.shape == (12, 8)
    assert (rows.reshape(-1, 4).sum(1) == 2).all()


def test_texts_of_other_lengths_cost_other_flops() -> None:
    """The loss makes tensors of them, so their shapes are not known before."""

    def own(model: nn.Module, batch: list[str]) -> torch.Tensor:
        rows = torch.ones(sum(map(len, batch)), 8)
        return model(rows).square().mean()

    def flops(*batches: list[str]) -> float:
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        settings = {"steps": 2, "learning_rate": 1e-3, "sparsity": 0.5, "method": "one_shot"}
        return instant_soup.prune(net, batches, own, **settings).cost["flops"]

    assert flops(["ab"], ["abcdefgh"]) == flops(["abcdefgh"], ["ab"]) == 5 * flops(["a"], ["a"])


def test_an_lstm_costs_its_products() -> None:
    """Four gates of each of 5 steps: a forward pass of 3 rows, times three a step."""
    net = nn.LSTM(8, 16, 2, bidirectional=True)
    batches = [torch.randn(5, 3, 8)]
    pruned = instant_soup.prune(
        net, batches, lambda m, b: m(b)[0].square().mean(), steps=2, learning_rate=1e-3,
        sparsity=0.5, method="one_shot", prunable=lambda name, p: name.startswith("weight"),
    )  # fmt: skip
    products = sum(p.numel() for name, p in net.named_parameters() if name.startswith("weight"))
    assert pruned.cost["flops"] == 2 * 3 * 2 * (5 * 3) * products
    assert pruned.cost["sparse_flops"] == pruned.cost["flops"] / 2


def test_a_packed_sequence_is_moved_whole() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])
    moved = run.to_device({"x": packed}, torch.device("meta"))["x"]
    assert moved.data.device.type == "meta" and torch.equal(moved.batch_sizes, packed.batch_sizes)


def test_a_perceptron_is_pruned_to_the_weight_and_its_zeros_stay() -> None:
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    pruned = instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    assert pruned.model is model and not model.training
    assert set(pruned.mask) == {"0.weight", "3.weight"}  # all but the last linear layer
    kept, total = masks.count(pruned.mask)
    assert total - kept == round(0.6 * total)
    assert zeros(model, pruned.mask)
    assert all(not torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert (pruned.cost["steps"], pruned.cost["search_steps"]) == (24, 3 * 2 * 3)


def test_it_learns() -> None:
    model = perceptron()
    instant_soup.prune(
        model, loader(), loss, **{**PRUNE_SETTINGS, "steps": 300, "learning_rate": 1e-2}
    )
    x, y = products().tensors
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_training_is_by_the_settings_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    take, seen = loop.take_steps, []

    def watched(*given: Any, **how: Any) -> State:
        seen.append(given[6])
        return take(*given, **how)

    monkeypatch.setattr(loop, "take_steps", watched)
    own = {"learning_rate": 2e-3, "weight_decay": 0.3, "warmup": 0.25, "clip_norm": 0.7, "seed": 4}
    own["precision"] = "bf16"
    instant_soup.prune(perceptron(), loader(), loss, steps=4, method="one_shot", **own)
    (recipe,) = seen
    assert {name: getattr(recipe, name) for name in own} == own


def test_equal_calls_give_equal_models_and_seeds_differ() -> None:
    one, other, third = (
        instant_soup.prune(perceptron(), loader(), loss, **{**PRUNE_SETTINGS, "seed": seed}).model
        for seed in (3, 3, 4)
    )
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    assert not torch.equal(one.state_dict()["0.weight"], third.state_dict()["0.weight"])


class Stopped(Exception):
    """Stands for a crash."""


def stop_at(step: int, model: nn.Module, folder: Path, **changes: Any) -> None:
    """Start a run and interrupt it, with a checkpoint, when so many steps are trained in all."""
    take, done = Record.after_step, 0

    def after_step(self: Record, here: int, error: Any, snapshot: Any) -> None:
        nonlocal done
        take(self, here, error, snapshot)
        done += 1
        if done == step:
            self.save(snapshot())
            raise Stopped

    with patch.object(Record, "after_step", after_step), pytest.raises(Stopped):
        instant_soup.prune(
            model, loader(), loss, checkpoint=folder, **{**PRUNE_SETTINGS, **changes}
        )


def assert_same(one: instant_soup.Pruned, other: instant_soup.Pruned) -> None:
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert all(torch.equal(kept, other.mask[name]) for name, kept in one.mask.items())
    counted = ("steps", "search_steps")
    assert [one.cost[key] for key in counted] == [other.cost[key] for key in counted]


# Rounds end after the steps 1, 4 and 7.
@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (1, {}),
        (2, {}),
        (4, {}),
        (15, {}),
        (5, {"score": "fisher"}),
        (20, {"adjust": "last_round"}),
        (5, {"method": "isp_plus"}),
        *((step, {"method": "movement", "every": 2}) for step in (1, 5, 16, 17, 20)),
        *((step, {"method": "granet", "every": 3}) for step in (1, 5, 12, 18, 20)),
        *((step, {"method": "platon", "every": 2}) for step in (5, 16)),
        *((step, {"method": "ac_dc", "phase": 0.1, "score": "fisher"}) for step in (6, 17)),
        *((step, {"method": "rigl", "every": 2, "start": "erdos_renyi"}) for step in (5, 20)),
        *((step, {"method": "smp"}) for step in (5, 20)),
        *((step, {"method": "gmp", "prunes": 6, "cycles": 3}) for step in (4, 10, 22)),
        *((step, {"method": SNIP(batches=2)}) for step in (1, 20)),
        (30, {"method": "early_bird", "every": 1.0, "window": 1}),
        *((step, {"method": "lth", "compression_rate": 0.4}) for step in (10, 30, 60)),
        *(
            (step, {"method": lambda w, g, _: {n: (w[n] * g[n]).abs() for n in w}})
            for step in (3, 9)
        ),
    ],
)
def test_a_stopped_call_goes_on_to_the_very_same_result(
    tmp_path: Path, step: int, changes: dict
) -> None:
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    own |= {} if "method" in changes else {"denoisers": 2, "look_ahead": 3}
    whole = instant_soup.prune(perceptron(), loader(), loss, **own, **changes)
    with patch.dict(PRUNE_SETTINGS, own, clear=True):
        stop_at(step, perceptron(), tmp_path, **changes)
    assert list(tmp_path.iterdir())
    resumed = instant_soup.prune(
        perceptron(), loader(), loss, checkpoint=tmp_path, **own, **changes
    )
    assert_same(whole, resumed)
    assert not list(tmp_path.rglob("*"))  # a finished run is not gone on with


@pytest.mark.parametrize("step", [2, 15, 23])
def test_a_call_that_an_error_stops_goes_on_from_the_step_before(
    tmp_path: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest after the last round, too."""
    own = with_changes({"method": "isp_plus"})
    taken = 0

    def fails(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal taken
        taken += 1
        if taken == step + 1:
            raise Stopped
        return loss(model, batch)

    whole = instant_soup.prune(perceptron(), loader(), loss, **own)
    with pytest.raises(Stopped):
        instant_soup.prune(perceptron(), loader(), fails, checkpoint=tmp_path, **own)
    resumed = instant_soup.prune(perceptron(), loader(), loss, checkpoint=tmp_path, **own)
    assert f"continuing from the checkpoint at step {step}" in capsys.readouterr().out
    assert_same(whole, resumed)


def test_a_call_in_another_precision_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `auto` is may differ where a stopped call goes on."""
    own = with_changes({"method": "isp_plus", "precision": "auto"})
    monkeypatch.setattr(loop, "resolve_precision", lambda *_: "bf16")
    with patch.dict(PRUNE_SETTINGS, own, clear=True):
        stop_at(2, perceptron(), tmp_path)
    monkeypatch.setattr(loop, "resolve_precision", lambda *_: "fp32")
    whole = instant_soup.prune(perceptron(), loader(), loss, **own)
    capsys.readouterr()
    again = instant_soup.prune(perceptron(), loader(), loss, checkpoint=tmp_path, **own)
    assert "from the checkpoint" not in capsys.readouterr().out
    assert_same(whole, again)


def test_a_call_that_is_stopped_at_its_very_end_takes_no_step_again(tmp_path: Path) -> None:
    own = with_changes({"method": "isp_plus"})
    whole = instant_soup.prune(perceptron(), loader(), loss, **own)
    with patch.object(prune_module, "Pruned", side_effect=Stopped), pytest.raises(Stopped):
        instant_soup.prune(perceptron(), loader(), loss, checkpoint=tmp_path, **own)

    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("trained again")

    assert_same(
        whole, instant_soup.prune(perceptron(), loader(), never, checkpoint=tmp_path, **own)
    )
    assert not list(tmp_path.rglob("*"))


class Noisy:
    """Batches that draw random numbers as they are made, as a collator that masks tokens does."""

    def __len__(self) -> int:
        return len(loader())

    def __iter__(self) -> Iterator[Any]:
        for x, y in loader():
            yield x + 0.1 * torch.randn_like(x), y


@pytest.mark.parametrize("step", [1, 6, 14, 22])
def test_batches_that_draw_random_numbers_go_on_within_a_pass(tmp_path: Path, step: int) -> None:
    own = with_changes({"method": "isp_plus"})
    calls = [0]

    def fails(model: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == step + 1:
            raise Stopped
        return loss(model, batch)

    whole = instant_soup.prune(perceptron(), Noisy(), loss, **own)
    with pytest.raises(Stopped):
        instant_soup.prune(perceptron(), Noisy(), fails, checkpoint=tmp_path, **own)
    costs = [json.loads(file.read_text()) for file in tmp_path.rglob("cost.json")]
    assert costs and all(cost["peak_memory"] > 0 for cost in costs)
    assert_same(whole, instant_soup.prune(perceptron(), Noisy(), loss, checkpoint=tmp_path, **own))


def test_an_error_behind_a_forward_pass_leaves_no_torn_statistics(tmp_path: Path) -> None:
    """A batch norm has counted the batch by then."""

    def model() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 2)]
        return nn.Sequential(*layers)

    own, calls = with_changes({"method": "isp_plus"}), [0]

    def fails(network: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        found = loss(network, batch)
        if calls[0] == 15:
            raise Stopped
        return found

    whole = instant_soup.prune(model(), loader(), loss, **own)
    with pytest.raises(Stopped):
        instant_soup.prune(model(), loader(), fails, checkpoint=tmp_path, **own)
    again = instant_soup.prune(model(), loader(), loss, checkpoint=tmp_path, **own)
    assert_same(whole, again)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_buffer_that_was_made_in_inference_mode_is_no_hindrance() -> None:
    """As a table of positions that an evaluation has filled."""
    model = perceptron()
    with torch.inference_mode():
        model.register_buffer("table", torch.arange(3.0), persistent=False)
    assert_same(
        instant_soup.prune(model, loader(), loss, **with_changes({"method": "isp_plus"})),
        instant_soup.prune(perceptron(), loader(), loss, **with_changes({"method": "isp_plus"})),
    )


def test_a_training_that_diverged_is_not_kept(tmp_path: Path) -> None:
    own = with_changes({"method": "one_shot"})

    def diverges(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss(model, batch) * float("nan")

    with pytest.raises(UserError, match="the loss of step 1 is nan"):
        instant_soup.prune(perceptron(), loader(), diverges, checkpoint=tmp_path, **own)
    assert not list(tmp_path.rglob("progress.json"))


@pytest.mark.parametrize(("seed", "rate"), [(0, 1e-3), (1, 3e-3)])
def test_a_checkpoint_of_other_settings_or_weights_is_not_taken_up(
    tmp_path: Path, seed: int, rate: float
) -> None:
    stop_at(15, perceptron(), tmp_path)
    changed = {**PRUNE_SETTINGS, "learning_rate": rate}
    with_it = instant_soup.prune(perceptron(seed), loader(), loss, checkpoint=tmp_path, **changed)
    without = instant_soup.prune(perceptron(seed), loader(), loss, **changed)
    for name, weight in with_it.model.state_dict().items():
        assert torch.equal(weight, without.model.state_dict()[name])


def test_a_head_drawn_anew_does_not_keep_a_call_from_going_on(tmp_path: Path) -> None:
    whole = instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS)
    stop_at(15, perceptron(), tmp_path)
    model = perceptron()
    nn.init.zeros_(model.get_parameter("5.weight"))  # the last map is not pruned
    resumed = instant_soup.prune(model, loader(), loss, checkpoint=tmp_path, **PRUNE_SETTINGS)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


def test_tied_and_channels_last_weights_can_be_kept(tmp_path: Path) -> None:
    def model() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
        net = net.to(memory_format=torch.channels_last)
        net[3].weight = net[2].weight
        return net

    torch.manual_seed(0)
    x, one = torch.randn(6, 2, 2, 2), model()

    def error(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return m(batch).square().mean()

    pruned = instant_soup.prune(one, [x], error, checkpoint=tmp_path, **PRUNE_SETTINGS)
    assert zeros(one, pruned.mask)


def test_gradients_of_before_do_not_enter() -> None:
    plain, stale = perceptron(), perceptron()
    loss(stale, next(iter(loader()))).backward()
    for model in (plain, stale):
        instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, stale.state_dict()[name])


def test_without_denoisers_it_is_progressive_pruning_and_one_round_one_shot() -> None:
    own = {**PRUNE_SETTINGS, "denoisers": 0}
    isp = instant_soup.prune(perceptron(), loader(), loss, **own)
    own = {k: v for k, v in own.items() if k not in ("denoisers", "look_ahead")}
    assert_same(isp, instant_soup.prune(perceptron(), loader(), loss, method="progressive", **own))
    once = {"compression_rate": 0.9, "mask_finding": 0.0}
    isp = instant_soup.prune(perceptron(), loader(), loss, denoisers=0, **own, **once)
    assert_same(isp, instant_soup.prune(perceptron(), loader(), loss, method="one_shot", **own))
    matrices = {n: p.detach() for n, p in model_of.choose(perceptron()).items()}
    expected = scores.magnitude(matrices, 0.6)
    assert all(torch.equal(isp.mask[n], kept) for n, kept in expected.items())


def test_without_denoisers_fisher_is_isp_plus() -> None:
    own = {**PRUNE_SETTINGS, "denoisers": 0, "score": "fisher"}
    isp = instant_soup.prune(perceptron(), loader(), loss, **own)
    own = {k: v for k, v in own.items() if k not in ("denoisers", "look_ahead", "score")}
    assert_same(isp, instant_soup.prune(perceptron(), loader(), loss, method="isp_plus", **own))


@pytest.mark.parametrize("denoisers", [0, 2])
def test_fisher_prunes_to_the_weight_and_otherwise_than_magnitude(denoisers: int) -> None:
    found = {}
    for score in ("magnitude", "fisher"):
        own = {**PRUNE_SETTINGS, "denoisers": denoisers, "score": score}
        pruned = instant_soup.prune(perceptron(), loader(), loss, **own)
        kept, total = masks.count(pruned.mask)
        assert total - kept == round(PRUNE_SETTINGS["sparsity"] * total)
        assert zeros(pruned.model, pruned.mask)
        found[score] = pruned.mask
    assert masks.distance(found["magnitude"], found["fisher"]) > 0


def test_what_a_search_tells_comes_with_the_model() -> None:
    own = {"steps": 24, "learning_rate": 3e-3, "sparsity": 0.75, "precision": "fp32"}
    never = {"method": "early_bird", "every": 1.0, "threshold": 1e-9}
    with pytest.warns(UserWarning, match=r"^early_bird: the mask did not settle in 24 steps"):
        pruned = instant_soup.prune(perceptron(), loader(), loss, **own, **never)
    drawn = pruned.found["drawn"]
    assert drawn["settled"] is False and drawn["step"] == pruned.cost["search_steps"] == 24
    soup = {"method": "greedy_soup", "networks": 2, "validate": accuracy}
    assert instant_soup.prune(perceptron(), loader(), loss, **own, **soup).found["members"]
    assert instant_soup.prune(perceptron(), loader(), loss, **own, method="one_shot").found == {}


def test_a_rewound_ticket_counts_the_steps_that_it_takes(tmp_path: Path) -> None:
    """From a checkpoint's folder the dense training is asked for as a whole: a step more."""
    taken = []

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        taken.append(model.training)
        return loss(model, batch)

    own = {"steps": 24, "learning_rate": 3e-3, "sparsity": 0.75, "precision": "fp32"}
    own |= {"method": "lth_rewind", "compression_rate": 0.4}
    found = instant_soup.prune(perceptron(), loader(), counted, **own)
    assert len(taken) == found.cost["steps"] + found.cost["search_steps"] == 24 + 23 + 23
    kept = instant_soup.prune(perceptron(), loader(), counted, **own, checkpoint=tmp_path)
    assert len(taken) == 2 * (24 + 23 + 23) + 1
    assert_same(found, kept)


def test_fisher_of_frozen_matrices_is_refused() -> None:
    model = perceptron()
    name = next(iter(model_of.choose(model)))
    model.get_parameter(name).requires_grad_(False)
    with pytest.raises(UserError, match=f"{name} has none"):
        instant_soup.prune(model, loader(), loss, **{**PRUNE_SETTINGS, "score": "fisher"})


# What the methods' settings are for a run as short as these.
SHORT: dict[str, Any] = {
    "early_bird": {"every": 1.0},
    **{"granet": {"every": 2}, "rigl": {"every": 2}, "platon": {"every": 2}},
    "ac_dc": {"phase": 0.1},
    "gmp": {"prunes": 8},
    "lth": {"compression_rate": 0.4},
    "lth_rewind": {"compression_rate": 0.4},
    "lottery_pool": {"compression_rate": 0.4},
    "uniform_soup": {"networks": 2},
    "greedy_soup": {"networks": 2},
}
# Those whose settings' names `prune` has itself come as objects.
OBJECTS = {
    "instant_model_soup": InstantModelSoup(denoisers=2, steps=3),
    "snip": SNIP(batches=2),
    "grasp": GraSP(batches=2),
}


def accuracy(model: nn.Module) -> float:
    x, y = products().tensors
    x = x.to(next(model.parameters()).dtype)
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("name", [name for name, one in methods().items() if not one.needs])
def test_every_method_prunes_to_the_weight(name: str) -> None:
    own = {"steps": 24, "learning_rate": 3e-3, "sparsity": 0.75, "precision": "fp32"}
    own |= {"method": OBJECTS.get(name, name), "validate": accuracy, **SHORT.get(name, {})}
    pruned = instant_soup.prune(perceptron(), loader(), loss, **own)
    kept, total = masks.count(pruned.mask)
    assert total - kept == (0 if methods()[name].dense else round(0.75 * total))
    parameters = dict(pruned.model.named_parameters())
    assert not any(parameters[n][~kept].any() for n, kept in pruned.mask.items())
    assert pruned.method == name and pruned.sparsity == pytest.approx((total - kept) / total)
    # The budget is the same for all; of a soup, all is search.
    assert pruned.cost["steps"] <= 24 and pruned.cost["flops"] > 0
    assert_same(pruned, instant_soup.prune(perceptron(), loader(), loss, **own))


@pytest.mark.parametrize("name", [n for n, one in methods().items() if not one.needs])
def test_every_method_prunes_a_model_in_fp64(name: str) -> None:
    def of_doubles(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0].double()), batch[1])

    own = {"steps": 24, "learning_rate": 3e-3, "sparsity": 0.75, "precision": "fp32"}
    own |= {"method": OBJECTS.get(name, name), "validate": accuracy, **SHORT.get(name, {})}
    pruned = instant_soup.prune(perceptron().double(), loader(), of_doubles, **own)
    kept, total = masks.count(pruned.mask)
    assert total - kept == (0 if methods()[name].dense else round(0.75 * total))
    assert all(p.dtype == torch.float64 for p in pruned.model.parameters())


def test_flops_are_those_of_the_products() -> None:
    """Three forward passes a step: by hand, a multiply-add as two, and of pruned weights none."""
    of_prunable, of_head = 2 * 16 * (8 * 32 + 32 * 32), 2 * 16 * 32 * 2
    own = {**with_changes({"method": "one_shot"}), "sparsity": 0.75}
    cost = instant_soup.prune(perceptron(), loader(), loss, **own).cost
    assert cost["flops"] == 24 * 3 * (of_prunable + of_head)
    assert cost["sparse_flops"] == 24 * 3 * (of_prunable / 4 + of_head)
    isp = instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS).cost
    assert isp["flops"] == (24 + isp["search_steps"]) * 3 * (of_prunable + of_head)
    snip = instant_soup.prune(perceptron(), loader(), loss, **{**own, "method": SNIP(batches=2)})
    assert snip.cost["flops"] == (24 + 2) * 3 * (of_prunable + of_head)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flops_of_batches_of_several_shapes_and_kinds(tiny_bert: Path, precision: str) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    ids = torch.randint(5, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    rows = {"input_ids": ids, "labels": (ids[:, 1] > 12).long()}
    short = {name: part[:4] for name, part in rows.items()}
    own = {**with_changes({"method": "one_shot"}), "steps": 4, "precision": precision}

    def error(m: Any, b: Any) -> torch.Tensor:
        return m(**b).loss

    whole, half, both = (
        instant_soup.prune(copy.deepcopy(model), batches, error, **own).cost["flops"]
        for batches in ([rows], [short], [rows, short])
    )
    assert whole == 2 * half and both == (whole + half) / 2
    products = 3 * 4 * 2 * 8 * 12 * sum(w.numel() for w in model_of.choose(model).values())
    attention = 3 * 4 * 2 * 2 * (2 * 8 * 12 * 12 * 32)  # two layers, two products
    head = 3 * 4 * 2 * 8 * (32 * 32 + 32 * 2)
    assert whole == products + attention + head


def test_a_callable_is_a_criterion() -> None:
    seen = []

    def taylor(weights: dict, gradients: dict, state: State) -> dict:
        assert weights.keys() == gradients.keys() and not any(n.endswith("bias") for n in weights)
        assert all(gradients[n].any() and state.second_moments[n].any() for n in weights)
        seen.append((state.step, float(masks.sparsity({n: w != 0 for n, w in weights.items()}))))
        # Dense gradients: those of pruned weights are there, too.
        if len(seen) > 1:
            assert any(gradients[n][weights[n] == 0].any() for n in weights)
        return {n: (w * gradients[n]).abs() for n, w in weights.items()}

    pruned = instant_soup.prune(
        perceptron(), loader(), loss, **with_changes({"method": taylor}), compression_rate=0.3
    )
    assert [step for step, _ in seen] == [2, 7]
    assert [round(sparsity, 2) for _, sparsity in seen] == [0.0, 0.3]
    assert pruned.sparsity == pytest.approx(0.6, abs=1e-3) and pruned.method == "custom"
    assert zeros(pruned.model, pruned.mask)


def test_what_is_pruned_stays_so_whatever_a_callable_says_of_it() -> None:
    held = BareRun({"w": torch.tensor([[1.0, 2.0, 3.0, 4.0]])})
    custom = Custom(criterion=lambda weights, gradients, state: {"w": -weights["w"]})
    held.prune({"w": torch.tensor([[False, True, True, True]])})
    assert custom.find_mask(held, 1, 0.5)["w"].tolist() == [[False, True, True, False]]


def test_a_callable_with_odd_scores_is_refused() -> None:
    with pytest.raises(UserError, match="the scores have not the names and shapes"):
        instant_soup.prune(
            perceptron(), loader(), loss, **with_changes({"method": lambda w, g, s: {}})
        )


def test_an_object_of_settings_is_a_method() -> None:
    named = instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS)
    own = {k: v for k, v in PRUNE_SETTINGS.items() if k not in ("denoisers", "look_ahead")}
    for method in (ISP(denoisers=2, look_ahead=3, subset=1.0), ISP(denoisers=2, subset=1.0)):
        more = {} if method.look_ahead else {"look_ahead": 3}
        found = instant_soup.prune(perceptron(), loader(), loss, method=method, **own, **more)
        assert_same(named, found)
    found = instant_soup.prune(perceptron(), loader(), loss, method=ISP, **PRUNE_SETTINGS)
    assert_same(named, found)


def test_defaults_are_the_librarys_and_none_stands_for_them() -> None:
    made = settings.method_of("isp", {"look_ahead": None})
    assert (made.look_ahead, made.denoisers, made.subset, made.mask_finding) == (10, 3, 1.0, 0.3)
    assert made.weight_decay_range == [0.0, 0.1] and made.compression_rate == 0.2
    assert settings.method_of("isp", {"mask_finding": None}).mask_finding is None
    assert settings.method_of("isp", {"calibration": 0.2}).mask_finding is None
    with pytest.raises(UserError, match=r"^calibration: 0\.2 is for mask_finding: null"):
        settings.method_of("isp", {"calibration": 0.2, "mask_finding": 0.5})
    assert settings.method_of(ISP(calibration=0.2), {}).mask_finding is None
    assert settings.method_of(ISP(), {}).mask_finding == 0.3


@pytest.mark.parametrize(
    "changes",
    [
        {"growing": False},
        {"rate_of": "remaining"},
        {"adjust": "last_round"},
        {"own_mask": True},
        {"subset": 0.3},
        {"score": "fisher"},
        {"combine": "vote"},
        {"combine": "intersection"},
        {"compression_rate": 0.1},
        {"learning_rate_range": (0.1, 0.2)},
        {"weight_decay_range": (50.0, 60.0)},
        {"calibration": 0.5},
        {"look_ahead": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_setting_of_isp_changes_the_mask(changes: dict) -> None:
    usual = instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS)
    found = instant_soup.prune(perceptron(), loader(), loss, **{**PRUNE_SETTINGS, **changes})
    assert usual.sparsity == found.sparsity
    assert masks.distance(usual.mask, found.mask) > 0
    assert zeros(found.model, found.mask)


def test_a_round_that_is_not_adjusted_keeps_more() -> None:
    """Only the last round prunes the union to its sparsity."""
    seen = []
    search = run.LibraryRun.search

    def watched(self: Any, *asked: Any) -> Any:
        seen.append(masks.sparsity(mask := search(self, *asked)))
        return mask

    own = {**PRUNE_SETTINGS, "adjust": "last_round", "look_ahead": 6}
    with patch.object(run.LibraryRun, "search", watched):
        instant_soup.prune(perceptron(), loader(), loss, **own)
    assert seen[0] < 0.199 and seen[1] < 0.399 and seen[2] == pytest.approx(0.6, abs=1e-3)


def test_calibration_counts_in_epochs() -> None:
    """An epoch has six steps here; rounds take t, 2 t, 3 t."""
    ends: list[int] = []
    prune_to = run.LibraryRun.prune

    def watched(self: Any, mask: masks.Mask) -> None:
        ends.append(self.state.step)
        prune_to(self, mask)

    with patch.object(run.LibraryRun, "prune", watched):
        instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS, calibration=0.5)
    assert ends == [3, 9, 18]


def test_a_denoisers_subset_is_of_batches_the_same_in_each_pass() -> None:
    batches = list(range(6))
    rows = torch.tensor([1, 4])
    assert [b for _, b in run.steps(batches, 0, 5, 0, rows)] == [1, 4, 1, 4, 1]
    shuffled = torch.utils.data.DataLoader(torch.arange(6), shuffle=True)
    taken = [int(b) for _, b in run.steps(shuffled, 0, 4, 7, rows)]
    assert taken[:2] == taken[2:] and len(set(taken)) == 2


def test_a_shuffler_is_told_where_a_pass_begins_and_a_subsets_passes_are_alike() -> None:
    class Shuffled(list):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    told: list[int] = []
    assert [batch for _, batch in run.steps(Shuffled("abc"), 0, 6, 0)] == [*"abcabc"]
    assert told == [0, 3]
    told.clear()
    rows = torch.tensor([1])
    assert [batch for _, batch in run.steps(Shuffled("abc"), 0, 3, 0, rows)] == [*"bbb"]
    assert told == [0, 0, 0]


def test_a_score_costs_the_products_that_are_left() -> None:
    """Of the first two layers a quarter is kept; the head is whole."""
    model, x = perceptron(), torch.randn(5, 8)
    own = run.LibraryRun(
        model, loader(), loss, model_of.choose(model), settings.recipe_of(0), 4,
        validate=lambda network: float(network(x).sum()),
    )  # fmt: skip
    own.prune(scores.magnitude(own.weights, 0.75))
    own.score(own.state.weights)
    inside, head = (2 * 5 * weights for weights in (8 * 32 + 32 * 32, 32 * 2))
    assert own.cost.flops == inside + head and own.cost.sparse_flops == inside / 4 + head


def test_a_run_goes_on_within_a_pass() -> None:
    shuffled = torch.utils.data.DataLoader(torch.arange(5), shuffle=True)
    whole = [(step, int(b)) for step, b in run.steps(shuffled, 0, 13, 3)]
    for cut in (1, 5, 7):
        rest = [(step, int(b)) for step, b in run.steps(shuffled, cut, 13, 3)]
        assert rest == whole[cut:]


def test_a_batch_norm_has_counters_that_no_soup_mixes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 2))
    own = {**with_changes({"method": "uniform_soup"}), "networks": 2}
    instant_soup.prune(model, loader(), loss, validate=accuracy, **own)
    assert int(model[1].num_batches_tracked) == 24


def test_a_users_model_keeps_its_attention_and_its_frozen_weights(tiny_bert: Path) -> None:
    """Gradients before training are taken on a copy."""
    model = new_classifier(tiny_bert, 2, 0)
    model.requires_grad_(False).classifier.requires_grad_(True)
    before = model.config._attn_implementation
    ids = torch.randint(5, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": (ids[:, 1] > 12).long()}
    own = with_changes({"method": "grasp"})
    pruned = instant_soup.prune(model, [batch], lambda m, b: m(**b).loss, **own)
    assert model.config._attn_implementation == before
    assert not any(model.get_parameter(name).requires_grad for name in pruned.mask)
    assert zeros(model, pruned.mask)


def test_a_bert_is_pruned_in_its_blocks(tiny_bert: Path) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    ids = torch.randint(5, 20, (32, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids[i : i + 8], "labels": (ids[i : i + 8, 1] > 12).long()}
               for i in range(0, 32, 8)]  # fmt: skip
    pruned = instant_soup.prune(model, batches, lambda m, b: m(**b).loss, **PRUNE_SETTINGS)
    assert len(pruned.mask) == 12 and all(".layer." in name for name in pruned.mask)
    assert zeros(model, pruned.mask)


def test_multihead_attention_is_pruned_whole() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(4, 6, 16)

    def error(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(m(batch), batch)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruned = instant_soup.prune(model, [x], error, **PRUNE_SETTINGS)
    kinds = {name.split(".", 2)[2] for name in pruned.mask}
    assert kinds == {"self_attn.in_proj_weight", "self_attn.out_proj.weight",
                     "linear1.weight", "linear2.weight"}  # fmt: skip
    assert zeros(model, pruned.mask)
    for name, kept in pruned.mask.items():
        assert (dict(model.named_parameters())[name] != before[name])[kept].any()


def test_layers_in_a_list_are_no_blocks() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)])
            self.attend = nn.MultiheadAttention(2, 1, kdim=4, vdim=6)
            self.head = nn.Linear(2, 2)

    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    wanted = {f"layers.{i}.weight" for i in range(3)} | {f"attend.{name}" for name in names}
    assert set(model_of.choose(Heads())) == wanted


def test_batches_move_as_what_they_are() -> None:
    class Pair(NamedTuple):
        x: torch.Tensor
        words: str

    tensor = torch.ones(2)
    batch = {"a": [tensor, Pair(tensor, "b")], "c": defaultdict(list, {"d": (tensor,)})}
    moved = run.to_device(batch, torch.device("meta"))
    assert isinstance(moved["a"][1], Pair) and moved["a"][1].words == "b"
    assert moved["c"]["new"] == [] and moved["c"]["d"][0].device.type == "meta"
    assert moved["a"][0].device.type == moved["a"][1].x.device.type == "meta"
    assert tensor.device.type == "cpu" and batch["a"][0] is tensor


def test_a_predicate_chooses_what_is_pruned() -> None:
    model = perceptron()
    pruned = instant_soup.prune(
        model, loader(), loss, prunable=lambda name, p: name == "5.weight", **PRUNE_SETTINGS
    )
    assert set(pruned.mask) == {"5.weight"}


def with_changes(changes: dict) -> dict:
    """The settings of PRUNE_SETTINGS, without ISP's own for another method."""
    of_isp = ("denoisers", "look_ahead") if "method" in changes else ()
    return {k: v for k, v in PRUNE_SETTINGS.items() if k not in of_isp} | changes


RAMP = {"schedule": "cubic", "prunes": 6, "first_cut": 0.5, "begin": 0.1, "end": 0.7}
GROWING = {"schedule": "rounds", "compression_rate": 0.3, "mask_finding": 0.5}


@pytest.mark.parametrize("schedule", [RAMP, GROWING])
def test_without_restarts_gmp_is_progressive_magnitude(schedule: dict[str, Any]) -> None:
    own = {"steps": 24, "learning_rate": 3e-3, "sparsity": 0.75, "precision": "fp32", **schedule}
    one, other = (
        instant_soup.prune(perceptron(), loader(), loss, method=name, cycles=1, **own)
        for name in ("gmp", "progressive")
    )
    assert_same(one, other)
    assert masks.count(one.mask)[0] == round(0.25 * masks.count(one.mask)[1])


@pytest.mark.parametrize("name", ["isp", "isp_plus", "progressive"])
def test_every_row_that_prunes_on_the_way_may_have_ramp_and_restarts(name: str) -> None:
    """The rate of each step, and the sparsity behind it."""
    own = {"steps": 24, "learning_rate": 0.1, "sparsity": 0.6, "precision": "fp32", **RAMP}
    own |= {"denoisers": 1, "look_ahead": 2} if name == "isp" else {}
    rates: list[float] = []
    take = torch.optim.AdamW.step

    def step(self: Any, *given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return take(self, *given)

    with patch.object(torch.optim.AdamW, "step", step):
        cycled = instant_soup.prune(
            perceptron(), loader(), loss, method=name, cycles=4, lowest_rate=0.5, **own
        )
    cycle = [0.1, 0.09, 0.08, 0.07, 0.06, 0.05]
    ahead = 2 if name == "isp" else 0  # a look-ahead's steps are at a rate of its own
    assert len(rates) == 24 + 6 * ahead
    assert [rate for rate in rates if any(math.isclose(rate, c) for c in cycle)] == pytest.approx(
        cycle * 4
    )
    kept, total = masks.count(cycled.mask)
    assert total - kept == round(0.6 * total)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "sparsity: 1.0"),
        ({"compression_rate": 0}, "compression_rate: 0"),
        ({"mask_finding": 1.0}, "mask_finding: 1.0"),
        ({"mask_finding": 0.99}, "mask_finding: 0.99: the 3 rounds take the whole budget of 24"),
        ({"combine": "best"}, "union | intersection | vote"),
        ({"score": "best"}, "score: 'best' is not allowed; allowed: magnitude | fisher"),
        (
            {"score": "fisher", "mask_finding": 0.0},
            "mask_finding: 0.0 prunes before the first of",
        ),
        ({"method": "isp_plus", "mask_finding": 0.0}, "mask_finding: 0.0 prunes before the first"),
        ({"steps": 3}, "mask_finding: 0.3: 3 rounds in 3 steps; allowed: more steps in all"),
        ({"steps": 4, "warmup": 0.9}, "warmup: leaves none of 4 steps after the warm-up"),
        ({"denoisers": -1}, "denoisers: -1"),
        ({"look_ahead": 0}, "look_ahead: 0"),
        ({"precision": "fp16"}, "precision: 'fp16' is not allowed; allowed: auto"),
        ({"learning_rate_range": (0, 1)}, "learning_rate_range: [0, 1]"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"look_ahed": 3}, "look_ahed: no setting of isp; it takes: compression_rate, rate_of"),
        ({"method": "ips"}, "method: unknown ips; did you mean isp?"),
        ({"method": 3}, "method: 3 is not allowed; allowed: a name"),
        ({"method": "random_init"}, "random_init needs the row of isp, which only the pipeline"),
        ({"calibration": 2.0}, "calibration: 3 rounds of mask finding would take 300% of epochs"),
        ({"method": "movement", "begin": 0.8}, "begin: 0.8 is not before end 0.7"),
        ({"method": "gmp", "begin": 0.9}, "begin: 0.9 is not before end 0.8; allowed: less than"),
        ({"method": "gmp"}, "prunes: 30 do not fit into the steps from 0.2 to 0.8 of 24; allowed"),
        ({"method": "gmp", "calibration": 0.1}, "calibration: 0.1 is for schedule: rounds"),
        ({"method": "isp_plus", "first_cut": 0.5}, "first_cut: 0.5 is for schedule: cubic"),
        ({"method": "gmp", "prunes": 3, "cycles": 25}, "cycles: 25 in 24 steps; allowed: at most"),
        ({"method": "n_of_m"}, "sparsity: 0.6 is no N:4 pattern; allowed with m 4: 0.25, 0.5"),
        ({"method": "greedy_soup"}, "validate: greedy_soup chooses among networks by a score"),
        ({"clip_norm": 0}, "clip_norm: 0"),
        ({"prunable": lambda name, p: False}, "nothing to prune"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(changes: dict, words: str) -> None:
    def no_step(*_: Any) -> torch.Tensor:
        raise AssertionError("it trained")

    with pytest.raises(UserError) as caught:
        instant_soup.prune(perceptron(), loader(), no_step, **with_changes(changes))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_counts_in_epochs_needs_batches_with_a_length() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(list(loader()))

    for own in ({"calibration": 0.1}, {"subset": 0.5}):
        with pytest.raises(UserError, match="batches: their number is not known"):
            instant_soup.prune(perceptron(), Endless(), loss, **with_changes(own))


def test_batches_that_run_out_are_refused() -> None:
    with pytest.raises(UserError, match="can be iterated only once"):
        instant_soup.prune(perceptron(), iter(loader()), loss, **PRUNE_SETTINGS)
    with pytest.raises(UserError, match="allowed: at least one batch"):
        instant_soup.prune(perceptron(), [], loss, **PRUNE_SETTINGS)


def test_a_parameter_that_no_loss_reaches_stays_as_it_is() -> None:
    model = perceptron()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    assert torch.equal(model.unused, torch.ones(3))


def test_a_matrix_that_no_loss_reaches_is_pruned_all_the_same() -> None:
    model = perceptron()
    model.add_module("spare", nn.Linear(32, 32))

    def through_the_others(m: Any, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(nn.Sequential(*list(m)[:-1])(batch[0]), batch[1])

    names = ("0.weight", "spare.weight")
    pruned = instant_soup.prune(
        model, loader(), through_the_others, prunable=lambda n, _: n in names, **PRUNE_SETTINGS
    )
    assert set(pruned.mask) == set(names) and zeros(model, pruned.mask)


def test_a_name_that_is_not_there_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = instant_soup.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    check = "import sys, instant_soup; sys.exit('torch' in sys.modules)"
    source = Path(instant_soup.__file__).parent.parent
    subprocess.run([sys.executable, "-c", check], env={"PYTHONPATH": str(source)}, check=True)


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert"])
def test_other_text_encoders_are_pruned_in_their_blocks(kind: str) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 20}
    widths = {
        "Roberta": {"hidden_size": 32, "intermediate_size": 64},
        "DistilBert": {"dim": 32, "hidden_dim": 64},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **widths[kind], num_labels=2)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    ids = torch.randint(5, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "labels": (ids[:, 1] > 12).long()}]
    pruned = instant_soup.prune(model, batches, lambda m, b: m(**b).loss, **PRUNE_SETTINGS)
    assert len(pruned.mask) == 2 * 6 and all(".layer." in name for name in pruned.mask)
    assert zeros(model, pruned.mask)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_vision_transformers_are_pruned_in_their_blocks(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "timm":
        import timm

        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    else:
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
        config = ViTConfig(num_attention_heads=2, intermediate_size=64, num_labels=3, **sizes)
        model = ViTForImageClassification(config)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 3

    def cross_entropy(m: nn.Module, batch: Any) -> torch.Tensor:
        outputs = m(batch[0])
        return functional.cross_entropy(getattr(outputs, "logits", outputs), batch[1])

    pruned = instant_soup.prune(model, [(images, labels)], cross_entropy, **PRUNE_SETTINGS)
    assert len(pruned.mask) == (2 * 4 if kind == "timm" else 2 * 6)
    assert zeros(model, pruned.mask)
