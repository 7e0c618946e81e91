"""The engine: pruned weights stay zero, chained stages equal one run, nothing is lost to Ctrl-C."""

import os
import signal
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from helpers import (
    FakeRun,
    assert_same,
    bert_settings,
    bits,
    copied,
    interrupt_at,
    make_project,
    new_classifier,
    prunable,
    random_texts,
    steps_taken,
    training_for,
    work_in,
)
from instant_soup.config.sections import Recipe
from instant_soup.data import batches
from instant_soup.data.batches import Texts
from instant_soup.errors import UserError
from instant_soup.library.settings import recipe_of
from instant_soup.models import base as models
from instant_soup.models import bert, matrices
from instant_soup.pipeline import run as pipeline_run
from instant_soup.pipeline import workspace
from instant_soup.pipeline.run import PipelineRun, budget
from instant_soup.pipeline.stage_files import TrainStage
from instant_soup.pipeline.workspace import BASE, START, load_start
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training import checkpoints, loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.schedule import Steps, learning_rate
from instant_soup.training.state import State, load_state, save_state

RECIPE = Recipe(
    learning_rate=5e-3, weight_decay=0.1, batch_size=8, clip_norm=0.5, seed=3, precision="fp32"
)
TOTAL = 12

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


@pytest.fixture(scope="module")
def data() -> Texts:
    """Five steps an epoch."""
    return random_texts()


@pytest.fixture
def fresh(tiny_bert: Path) -> State:
    """A new classifier's state at step 0."""
    weights = new_classifier(tiny_bert, 2, 0).state_dict()
    return State({name: w.clone() for name, w in weights.items()})


@pytest.fixture
def train(tiny_bert: Path, data: Texts) -> Callable[..., State]:
    """Train a copy of a state (the engine itself works in place)."""

    def run(
        state: State,
        last: int,
        mask: Mask | None = None,
        cost: Cost | None = None,
        frozen: bool = False,
        dropout: float = 0.1,
        rows: Texts = data,
        total: int | None = TOTAL,
        after_step: Callable | None = None,
        **changes: Any,
    ) -> State:
        state = copied(state)
        outputs = len(state.weights["classifier.bias"])
        model = bert.classifier(tiny_bert, state.weights, **bert_settings(outputs, dropout, frozen))
        return loop.train(
            model,
            state,
            masks.full(matrices.prunable(model)) if mask is None else mask,
            rows,
            replace(RECIPE, **changes),
            Cost() if cost is None else cost,
            last=last,
            total=total,
            label="test",
            after_step=after_step,
        )

    return run


# Masks under training


def test_after_training_pruned_weights_are_zero_and_every_matrix_has_moved(fresh, train) -> None:
    mask = scores.magnitude(prunable(fresh), 0.7)
    fresh.prune(mask)
    after = train(fresh, 6, mask)
    assert len(mask) == 12
    for name, kept in mask.items():
        for tensors in (after.weights, after.first_moments, after.second_moments):
            assert not bits(tensors[name])[~kept].any(), name
        moved = after.weights[name] != fresh.weights[name]
        assert moved[kept].float().mean() > 0.9, name


def test_a_network_pruned_in_mid_run_stays_pruned(fresh, train) -> None:
    half_way = train(fresh, 4)
    mask = scores.magnitude(prunable(half_way), 0.7)
    half_way.prune(mask)
    after = train(half_way, 9, mask)
    for name, kept in mask.items():
        for tensors in (after.weights, after.first_moments, after.second_moments):
            assert not bits(tensors[name])[~kept].any(), name
        assert (after.weights[name] != half_way.weights[name])[kept].any(), name


def test_pruning_the_weights_alone_would_not_do(fresh, train) -> None:
    half_way = train(fresh, 4)
    mask = scores.magnitude(prunable(half_way), 0.7)
    masks.apply(mask, half_way.weights)  # the moments are left stale
    after = train(half_way, 5, mask)
    revived = [name for name, kept in mask.items() if after.weights[name][~kept].any()]
    assert revived == list(mask)


def test_a_state_without_moments_can_be_pruned(fresh) -> None:
    mask = scores.magnitude(prunable(fresh), 0.5)
    fresh.prune(mask)
    assert all(not fresh.weights[n][~kept].any() for n, kept in mask.items())
    assert fresh.weights["classifier.weight"].all()


def test_frozen_embeddings_keep_every_bit(fresh, train) -> None:
    after = train(fresh, 4, frozen=True)
    tables = [n for n in fresh.weights if n.endswith("_embeddings.weight")]
    assert len(tables) == 3
    for name, weight in fresh.weights.items():
        same = torch.equal(bits(after.weights[name]), bits(weight))
        assert same == (name in tables), name
        assert (name in after.first_moments) == (name not in tables)
    thawed = train(fresh, 4)
    assert not torch.equal(thawed.weights[tables[0]], fresh.weights[tables[0]])


# Chains of stages


@pytest.mark.parametrize("stops", [(9,), (1, 9), (5, 9), (8, 9), (2, 4, 6, 9), tuple(range(1, 10))])
def test_a_chain_of_stages_is_one_uninterrupted_run(fresh, train, tmp_path, stops) -> None:
    whole = train(fresh, 9)
    state = fresh
    for stop in stops:
        state = train(state, stop)
        save_state(tmp_path / "state", state)
        state = load_state(tmp_path / "state")
    assert_same(state, whole)
    assert state.step == 9


@pytest.mark.parametrize("stops", [(4, 9), (2, 4, 9), (4, 5, 9), (1, 3, 4, 6, 8, 9)])
@pytest.mark.parametrize("frozen", [False, True])
def test_so_it_is_with_pruning_on_the_way(fresh, train, tmp_path, stops, frozen) -> None:
    def prune(state: State) -> Mask:
        mask = scores.magnitude(prunable(state), 0.6)
        state.prune(mask)
        return mask

    half_way = train(fresh, 4, frozen=frozen)
    whole = train(half_way, 9, prune(half_way), frozen=frozen)
    state, mask = fresh, None
    for stop in stops:
        state = train(state, stop, mask, frozen=frozen)
        save_state(tmp_path / "state", state)
        if mask is not None:
            masks.save(tmp_path / "mask", mask)
        state = load_state(tmp_path / "state")
        mask = prune(state) if stop == 4 else mask and masks.load(tmp_path / "mask")
    assert_same(state, whole)


def test_a_run_depends_on_its_seed_and_not_on_the_global_generator(fresh, train) -> None:
    one = train(fresh, 3)
    torch.manual_seed(99)
    assert_same(train(fresh, 3), one)
    other = train(fresh, 3, seed=4)
    assert not torch.equal(other.weights["classifier.weight"], one.weights["classifier.weight"])


def test_no_steps_left_changes_nothing(fresh, train) -> None:
    done = train(fresh, 3)
    cost = Cost()
    assert_same(train(done, 3, cost=cost), done)
    assert cost == Cost()


def test_snapshots_are_the_states_on_the_way(fresh, train) -> None:
    seen: list[State] = []
    train(fresh, 4, after_step=lambda step, loss, snapshot: seen.append(copied(snapshot())))
    assert [state.step for state in seen] == [1, 2, 3, 4]
    for state in seen:
        assert_same(state, train(fresh, state.step))


# Files


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "first_moments.safetensors", "second_moments.safetensors"]
)
@pytest.mark.parametrize("damage", ["missing", "cut", "overwritten"])
def test_a_damaged_state_is_refused(fresh, train, tmp_path, name, damage) -> None:
    save_state(tmp_path / "state", train(fresh, 1))
    path = tmp_path / "state" / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        path.write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="state: cannot be read as a training state") as caught:
        load_state(tmp_path / "state")
    assert str(tmp_path) in str(caught.value)


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "place"),
    [("weights", -5), ("first_moments", -5), ("second_moments", 300), ("pruner", -1)],
)
def test_a_flipped_bit_in_a_state_is_refused(fresh, train, tmp_path, name, place) -> None:
    state = train(fresh, 1)
    state.of_pruner = {"kept": torch.ones(4)}
    save_state(tmp_path / "state", state)
    assert_same(load_state(tmp_path / "state"), state)
    file = tmp_path / f"state/{name}.safetensors"
    flip(file, place)
    with pytest.raises(UserError, match=f"training state .*{name}.safetensors: damaged"):
        load_state(tmp_path / "state")
    if name != "weights":
        load_state(tmp_path / "state", moments=False)
    file.unlink()
    with pytest.raises(UserError, match=f"{name}.safetensors: damaged"):
        load_state(tmp_path / "state")


def test_another_number_of_steps_is_refused_and_so_is_a_damaged_seal(fresh, train, tmp_path):
    save_state(tmp_path / "state", train(fresh, 1))
    progress = tmp_path / "state/progress.json"
    progress.write_text(progress.read_text().replace("1", "3"))
    with pytest.raises(UserError, match=r"progress\.json: damaged"):
        load_state(tmp_path / "state")
    for content in ("[]", "{"):
        (tmp_path / "state/sha256.json").write_text(content)
        with pytest.raises(UserError, match=r"sha256\.json"):
            load_state(tmp_path / "state")


def test_a_state_of_before_has_no_seal_and_loads(fresh, train, tmp_path) -> None:
    state = train(fresh, 1)
    save_state(tmp_path / "state", state)
    (tmp_path / "state/sha256.json").unlink()
    assert_same(load_state(tmp_path / "state"), state)


@pytest.mark.parametrize("content", [None, "", '{"step": 1'])
def test_a_damaged_progress_file_is_refused(fresh, tmp_path, content: str | None) -> None:
    save_state(tmp_path / "state", fresh)
    (tmp_path / "state/progress.json").unlink()
    if content is not None:
        (tmp_path / "state/progress.json").write_text(content)
    with pytest.raises(UserError, match=r"progress\.json"):
        load_state(tmp_path / "state")


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_state(tmp_path / "nowhere")


def test_a_state_half_written_is_never_seen(fresh, tmp_path, monkeypatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("instant_soup.training.state.write_json", full_disk)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "state", fresh)
    assert list(tmp_path.iterdir()) == []


def test_the_moments_need_not_be_read(fresh, train, tmp_path) -> None:
    save_state(tmp_path / "state", train(fresh, 2))
    (tmp_path / "state/first_moments.safetensors").unlink()
    state = load_state(tmp_path / "state", moments=False)
    assert state.step == 2 and state.first_moments == {} == state.second_moments


# Optimisation


def rates_of(train, fresh, monkeypatch, last: int, **arguments: Any) -> list[float]:
    """The learning rate that the optimiser had at each step."""
    make, rates = loop.make_optimizer, []

    def spied(*given: Any) -> torch.optim.Optimizer:
        optimizer = make(*given)
        step = optimizer.step

        def recorded() -> None:
            (rate,) = {group["lr"] for group in optimizer.param_groups}
            rates.append(rate)
            step()

        optimizer.step = recorded  # type: ignore
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", spied)
    train(fresh, last, **arguments)
    return rates


def test_the_rate_falls_to_zero_over_the_budget(fresh, train, monkeypatch) -> None:
    rates = rates_of(train, fresh, monkeypatch, 5, total=5, learning_rate=0.01)
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])


def test_the_warm_up_is_a_share_of_the_budget(fresh, train, monkeypatch) -> None:
    rates = rates_of(train, fresh, monkeypatch, 8, total=8, learning_rate=0.01, warmup=0.25)
    assert rates == pytest.approx([learning_rate(s, 8, 0.01, 2) for s in range(8)])
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])


def test_a_look_aheads_rate_is_constant(fresh, train, monkeypatch) -> None:
    rates = rates_of(train, fresh, monkeypatch, 6, total=None, learning_rate=0.01, warmup=0.5)
    assert rates == [0.01] * 6


@pytest.mark.parametrize("clip_norm", [0.05, 1e9], ids=["clipped", "free"])
def test_training_is_a_plain_loop_of_adamw(tiny_bert, fresh, train, data, clip_norm) -> None:
    ours = train(fresh, 6, dropout=0.0, clip_norm=clip_norm)

    model = new_classifier(tiny_bert, 2, 0).eval()  # eval: no dropout
    model.load_state_dict(fresh.weights)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, foreach=False)
    for step, batch in batches.training_batches(data, RECIPE, 0, 6):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / TOTAL)
        labels = batch.pop("labels")
        optimizer.zero_grad()
        functional.cross_entropy(model(**batch).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    for name, weight in model.state_dict().items():
        change = (weight - fresh.weights[name]).norm()
        # The attention ignores a key bias: its gradient is rounding noise.
        if "key.bias" not in name:
            assert (ours.weights[name] - weight).norm() < 1e-3 * change, name


def test_training_learns(fresh, train, data, tiny_bert) -> None:
    losses: list[float] = []
    train(
        *(fresh, 60),
        total=60,
        dropout=0.0,
        after_step=lambda step, loss, snapshot: losses.append(loss.item()),
    )
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_loss_that_is_no_longer_finite_is_an_error(fresh, train) -> None:
    with pytest.raises(
        UserError, match=r"test: the loss of step 2 is nan: try a smaller learning rate"
    ):
        train(fresh, 4, learning_rate=1e30)


def test_training_stops_at_the_first_loss_that_is_not_finite(
    fresh, train, data, tiny_bert, monkeypatch
) -> None:
    taken = steps_taken(monkeypatch)
    labels = data.labels.float()
    labels[3] = float("inf")
    rows = Texts(data.input_ids, data.token_type_ids, data.lengths, labels)
    state = State(new_classifier(tiny_bert, 1, 0).state_dict())
    with pytest.raises(UserError, match=r"loss of step (\d) is inf: ") as caught:
        train(state, 10, rows=rows, learning_rate=1e-9)
    number = int(str(caught.value).split("step ")[1][0])
    assert len(taken) == number <= 5  # the row is met once in the five steps of an epoch
    fresh.weights["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    with pytest.raises(UserError, match="step 1 is nan: nothing was trained before, so look for"):
        train(fresh, 10)


@pytest.mark.parametrize("last", [12, 3])
def test_where_losses_are_looked_at_later_no_state_is_kept_of_a_bad_one(
    fresh, train, monkeypatch, last: int
) -> None:
    """As on a GPU: a state is taken at the end, or before the next look at the losses."""
    monkeypatch.setitem(loop.UNSEEN, "cpu", 5)
    states: list[State] = []

    def keep(step: int, loss: torch.Tensor, snapshot: Callable[[], State]) -> None:
        if step == 4:
            states.append(snapshot())

    with pytest.raises(UserError, match="the loss of step 2 is nan: try a smaller learning rate"):
        train(fresh, last, learning_rate=1e30, after_step=keep)
    assert states == []


def test_the_loss_is_cross_entropy_for_classes_and_squared_error_for_numbers() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    expected = (torch.tensor(2.0).log() + (1 + torch.tensor(2.0).exp()).log()) / 2
    assert float(loop.loss_of(logits, torch.tensor([0, 1]))) == pytest.approx(float(expected))
    outputs = torch.tensor([[1.0], [2.0], [-1.0]])
    assert float(loop.loss_of(outputs, torch.tensor([0.0, 2.0, 1.0]))) == pytest.approx(5 / 3)


def test_a_regression_trains_on_squared_error(tiny_bert, train, data) -> None:
    rows = Texts(data.input_ids, data.token_type_ids, data.lengths, data.labels.float() * 2 + 0.5)
    weights = new_classifier(tiny_bert, 1, 0).state_dict()
    state = State({name: w.clone() for name, w in weights.items()})
    losses: list[float] = []
    (_, batch), *_ = batches.training_batches(rows, RECIPE, 0, 1)
    model = bert.classifier(tiny_bert, copied(state).weights, **bert_settings(1, 0.0))
    with torch.no_grad():
        outputs = loop.logits_of(model, batch)[:, 0].double()
    expected = ((outputs - batch["labels"].double()) ** 2).mean()
    train(state, 1, rows=rows, dropout=0.0, after_step=lambda s, loss, snap: losses.append(loss))
    assert float(losses[0]) == pytest.approx(float(expected), rel=1e-5)
    assert metrics.scores(*loop.predict(model, rows, "fp32")).keys() == {"pearson", "spearman"}


def test_evaluation_scores_every_row_against_its_own_label(tiny_bert, fresh, train, data) -> None:
    state = train(fresh, 40, total=40, dropout=0.0)
    model = bert.classifier(tiny_bert, state.weights, **bert_settings(2, 0.5))
    found = metrics.scores(*loop.predict(model, data, "fp32"))
    right = 0
    model.eval()
    with torch.no_grad():
        for row in range(40):
            batch = data.rows(torch.tensor([row]))
            right += int(loop.logits_of(model, batch).argmax() == batch["labels"])
    assert found["accuracy"] == pytest.approx(right / 40)
    assert right > 25
    metrics.scores(*loop.predict(model, data, "fp32"))
    assert model.training  # back in training mode


def test_what_missed_some_steps_goes_on_by_its_own_count() -> None:
    module = torch.nn.Linear(2, 1)
    first, second = ({n: torch.ones_like(p) for n, p in module.named_parameters()} for _ in "mv")
    state = State(dict(module.state_dict()), first, second, step=5, counts={"bias": 3})
    optimizer = loop.make_optimizer(module, state, 0.0)
    taken = [int(optimizer.state[p]["step"]) for p in (module.weight, module.bias)]
    assert taken == [5, 3] and loop.state_of(module, optimizer, 5).counts == {"bias": 3}


def test_weight_decay_spares_biases_and_norms(tiny_bert, fresh) -> None:
    model = bert.classifier(tiny_bert, fresh.weights, **bert_settings(2))
    decays = {
        id(p): group["weight_decay"]
        for group in loop.make_optimizer(model, fresh, 0.1).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "LayerNorm" in name
        assert decays[id(parameter)] == (0.0 if spared else 0.1), name


def test_precision_is_as_asked_or_as_the_hardware_has_it() -> None:
    assert loop.resolve_precision("fp32") == "fp32"
    assert loop.resolve_precision("bf16") == "bf16"
    assert loop.resolve_precision("auto") in ("fp32", "bf16")


def test_in_bf16_too_weights_and_moments_are_kept_in_full(fresh, train) -> None:
    mask = scores.magnitude(prunable(fresh), 0.7)
    fresh.prune(mask)
    after = train(fresh, 3, mask, precision="bf16")
    for tensors in (after.weights, after.first_moments, after.second_moments):
        assert all(t.dtype == torch.float32 for t in tensors.values())
        assert all(not bits(tensors[n])[~kept].any() for n, kept in mask.items())


# Cost


def test_the_cost_is_counted_batch_by_batch(tiny_bert, fresh, train, data) -> None:
    mask = scores.magnitude(prunable(fresh), 0.75)
    fresh.prune(mask)
    cost = Cost(steps=2, flops=1.0)
    train(fresh, 7, mask, cost)
    model = new_classifier(tiny_bert, 2, 0)
    dense = sparse = 0.0
    for _, batch in batches.training_batches(data, RECIPE, 0, 7):
        inside, outside = models.forward_flops(model, mask, batch)
        dense += 3 * (inside + outside)
        sparse += 3 * (0.25 * inside + outside)
    assert cost.steps == 2 + 7
    assert cost.flops == pytest.approx(1 + dense)
    assert cost.sparse_flops == pytest.approx(sparse)
    assert cost.search_steps == 0
    assert 0 < cost.seconds < 60


def test_costs_add_up_part_by_part() -> None:
    cost = Cost(1, 2, 3.0, 4.0, 5.0, peak_memory=7)
    cost.add(Cost(10, 20, 30.0, 40.0, 50.0, peak_memory=6))
    cost.add({"seconds": 0.5, "steps": 100})
    assert asdict(cost) == {
        "steps": 111,
        "search_steps": 22,
        "flops": 33.0,
        "sparse_flops": 44.0,
        "seconds": 55.5,
        "peak_memory": 7,  # the larger, no sum
    }


# The pipeline's run


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project folder up to models/start, made by the stages' own scripts."""
    training = training_for(2, evaluations=4)
    folder = tmp_path_factory.mktemp("project")
    return make_project(folder, tiny_bert, tiny_data, training=training)


@pytest.fixture
def inside(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the project, with a store of this test's own; returns its folder."""
    return work_in(project, tmp_path, monkeypatch)


def kept(store: Path) -> list[Path]:
    """The trainings that a store holds."""
    return [entry for entry in store.iterdir() if entry.is_dir()]


def recipe_of_dense(**changes: Any) -> Recipe:
    return replace(TrainStage.read("models/plan/dense.yaml").recipe, **changes)


def pruned_start() -> tuple[State, Mask]:
    """The start, trained for three steps and pruned by half: a run in its middle."""
    run = PipelineRun(*load_start(START), recipe_of_dense(), stored=False)
    run.train(3, "a")
    run.prune(scores.magnitude(prunable(run.state), 0.5))
    return run.state, run.mask


def go_on(
    start: tuple[State, Mask],
    recipe: Recipe,
    last: int,
    tracked: FakeRun | None = None,
    keep: bool = False,
    **more: Any,
) -> PipelineRun:
    """A run from a start, trained up to a step."""
    run = PipelineRun(copied(start[0]), start[1], recipe, tracked, **more)
    run.train(last, "test", keep=keep)
    run.forget()
    return run


# (epochs of the budget, so steps between two rows of the curve): 160 rows in batches of 16.
@pytest.mark.parametrize("epochs", [2, 15], ids=["a row every step", "a row every third step"])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 9])
def test_an_interrupted_run_goes_on_to_the_very_same_result(
    inside: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, step: int
) -> None:
    start, recipe = pruned_start(), recipe_of_dense(epochs=epochs)
    whole = go_on(start, recipe, 12)
    assert len(whole.curve) == (10 if epochs == 2 else 4)
    assert whole.curve[0]["step"] == 3 and whole.curve[0]["train_loss"] is None
    assert kept(inside) == []

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    number = signal.SIGINT if step % 2 else signal.SIGTERM
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(step, patch, lambda: os.kill(os.getpid(), number))
        go_on(start, recipe, 12, FakeRun())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    (checkpoint,) = kept(inside)
    assert load_state(checkpoint).step == 3 + step

    tracked = FakeRun()
    resumed = go_on(start, recipe, 12, tracked)
    assert_same(resumed.state, whole.state)
    assert resumed.curve == whole.curve == tracked.rows
    assert resumed.cost.steps == whole.cost.steps == 9
    assert resumed.cost.flops == pytest.approx(whole.cost.flops)
    assert kept(inside) == []


def test_ctrl_c_while_the_curve_is_recorded_loses_nothing(inside: Path) -> None:
    start, recipe = pruned_start(), recipe_of_dense()
    whole = go_on(start, recipe, 8)

    class Impatient(FakeRun):
        def curve(self, **row: Any) -> None:
            super().curve(**row)
            if row["step"] == 5:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        go_on(start, recipe, 8, Impatient())
    resumed = go_on(start, recipe, 8)
    assert_same(resumed.state, whole.state)
    assert resumed.curve == whole.curve and resumed.cost.steps == 5
    assert kept(inside) == []


def test_a_crash_costs_no_more_than_the_steps_since_the_last_checkpoint(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, recipe = pruned_start(), recipe_of_dense(epochs=60)
    whole = go_on(start, recipe, 12)

    def crash() -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(checkpoints, "EVERY", 0.0)
        interrupt_at(6, patch, crash)
        go_on(start, recipe, 12)
    (checkpoint,) = kept(inside)
    assert load_state(checkpoint).step == 3 + 5
    resumed = go_on(start, recipe, 12)
    assert_same(resumed.state, whole.state)
    assert resumed.curve == whole.curve and resumed.cost.steps == 9


@pytest.mark.parametrize(
    "change",
    [
        *("recipe", "mask", "weights", "moments", "last", "engine"),
        *("processor", "precision"),  # another machine, to which the project was copied
    ],
)
def test_a_checkpoint_is_not_taken_up_by_another_run(
    inside: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (state, mask), last, engine = pruned_start(), 7, "1"
    recipe = recipe_of_dense(precision="auto")
    monkeypatch.setattr(loop, "resolve_precision", lambda *_: "fp32")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(2, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        go_on((state, mask), recipe, last, engine=engine)

    if change == "recipe":
        recipe = replace(recipe, learning_rate=1e-3)
    elif change == "mask":
        mask = masks.full(mask)
    elif change == "weights":
        state.weights["classifier.bias"] += 1
    elif change == "moments":
        state.second_moments["classifier.bias"] += 1
    elif change == "last":
        last = 6
    elif change == "processor":
        monkeypatch.setattr(pipeline_run, "processor", lambda: "another one")
    elif change == "precision":
        monkeypatch.setattr(loop, "resolve_precision", lambda *_: "bf16")
    else:
        engine = "2"
    with monkeypatch.context() as patch:
        taken: list[int] = []
        interrupt_at(1, patch, lambda: taken.append(1))
        run = go_on((state, mask), recipe, last, engine=engine)
    assert run.cost.steps == last - 3  # all of them: it began at its own start
    assert taken and len(kept(inside)) == 1  # the other run's


def test_a_kept_training_is_taken_by_an_equal_one_with_its_curve_and_cost(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start, recipe = pruned_start(), recipe_of_dense()
    once = go_on(start, recipe, 8, keep=True)
    (entry,) = kept(inside)
    assert load_state(entry).step == 8

    def never() -> None:
        raise AssertionError("trained again")

    interrupt_at(1, monkeypatch, never)
    tracked = FakeRun()
    again = go_on(start, recipe, 8, tracked, keep=True)
    assert "test: taking the finished training from the checkpoint at step 8" in (
        capsys.readouterr().out
    )
    assert_same(again.state, once.state)
    assert again.curve == once.curve == tracked.rows
    assert (again.cost.steps, again.cost.flops) == (once.cost.steps, once.cost.flops)


def test_a_store_forgets_what_was_not_used_for_the_longest_time(tmp_path: Path) -> None:
    store = checkpoints.Store(tmp_path)
    for age, name in enumerate("abcd"):
        with store.entry(name) as folder:
            folder.mkdir()
            (folder / "weights").write_bytes(bytes(1000))
        os.utime(folder, (age, age))
    with store.entry("a"):  # taken up again
        pass
    with store.entry("b") as in_use:
        os.utime(in_use, (1, 1))
        store.trim(2500)
    left = {checkpoints.digest(name) for name in "abd"}
    assert {folder.name for folder in kept(tmp_path)} == left
    store.trim(2500)
    assert {folder.name for folder in kept(tmp_path)} == left - {checkpoints.digest("b")}


def test_the_budget_is_epochs_of_full_batches(inside: Path) -> None:
    rows = len(batches.load_split("data/encoded/train.safetensors", torch.device("cpu")))
    assert rows == 160
    assert budget(recipe_of_dense()) == Steps(total=20, steps_per_epoch=10)
    short = budget(recipe_of_dense(epochs=0.25, batch_size=32))
    assert short == Steps(total=1, steps_per_epoch=5)


def test_the_start_holds_the_base_and_a_new_head(inside: Path, tiny_bert: Path) -> None:
    state, mask = load_start(START)
    base = load_file(tiny_bert / "model.safetensors")
    for name, weight in base.items():
        assert torch.equal(state.weights[f"bert.{name}"], weight), name
    assert state.weights.keys() - {f"bert.{n}" for n in base} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert masks.sparsity(mask) == 0 and mask.keys() == prunable(state).keys()
    for name, weight in models.pretrained_prunable(BASE).items():
        assert torch.equal(weight, state.weights[name])


def test_a_start_is_pruned_by_its_mask_when_it_is_read(inside: Path, tmp_path: Path) -> None:
    state, _ = load_start(START)
    mask = scores.magnitude(prunable(state), 0.5)
    save_state(tmp_path / "round/state", state)
    masks.save(tmp_path / "round/mask.safetensors", mask)
    read, own_mask = load_start(tmp_path / "round")
    assert all(torch.equal(own_mask[n], kept) for n, kept in mask.items())
    assert all(not read.weights[n][~kept].any() for n, kept in mask.items())


def test_a_curve_comes_back_from_its_file(tmp_path: Path) -> None:
    curve = [
        {"step": 5, "train_loss": None, "validation": 0.75, "sparsity": 0.2},
        {"step": 6, "train_loss": struct.unpack("f", b"\x01\x02\x03\x3f")[0], "validation": None}
        | {"sparsity": 0.2},
    ]
    workspace.save_curve(tmp_path / "curve.csv", curve)
    assert workspace.load_curve(tmp_path / "curve.csv") == curve


def test_a_head_that_missed_steps_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    """AdamW corrects young means by each parameter's own count of steps."""

    class TwoHeads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.heads = torch.nn.ModuleList([torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)])

    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 5, 4, generator=draws)
    recipe = recipe_of(0, learning_rate=1e-2, weight_decay=0.0, precision="fp32")

    def taken(state: State, last: int) -> State:
        network = TwoHeads()
        network.load_state_dict(state.weights)
        source = ((step, (step % 2, rows[step])) for step in range(state.step, last))

        def of(batch: Any) -> torch.Tensor:
            return network.heads[batch[0]](batch[1]).square().mean()

        how: Any = {"last": last, "total": 9, "label": "heads"}
        return loop.take_steps(network, state, {}, source, of, None, recipe, Cost(), **how)

    start = {name: w.detach().clone() for name, w in TwoHeads().state_dict().items()}
    whole = taken(State({n: w.clone() for n, w in start.items()}), 9)
    part = taken(State({n: w.clone() for n, w in start.items()}), 5)
    assert part.counts == {f"heads.{i}.{n}": 3 - i for i in (0, 1) for n in ("weight", "bias")}
    save_state(tmp_path / "state", part)
    rest = taken(load_state(tmp_path / "state"), 9)
    assert_same(whole, rest)
    assert whole.counts == rest.counts
