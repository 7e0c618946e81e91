"""The store of trainings: what is one entry, what is foreign to it, and what rows share by it."""

import errno
import os
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import (
    ROOT,
    BareRun,
    FakeRun,
    assert_same,
    found_by,
    interrupt_at,
    make_project,
    prunable,
    run_script,
    same,
    state_in,
    steps_taken,
    training_for,
    work_in,
    write_plan,
)
from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.files import read_yaml, write_yaml
from instant_soup.pipeline import code
from instant_soup.pipeline import plan as plan_module
from instant_soup.pipeline.plan import ENGINE, plan_with_code
from instant_soup.pipeline.processes import STORE_LIMIT, store_limit
from instant_soup.pipeline.run import PipelineRun
from instant_soup.pipeline.stage_files import TrainStage
from instant_soup.pipeline.workspace import START, load_start
from instant_soup.sparsity import masks, scores
from instant_soup.training import checkpoints
from instant_soup.training import state as state_module
from instant_soup.training.checkpoints import Store, digest
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

LAW = settings(deadline=None, max_examples=100)
# Ten steps an epoch: T = 20; rounds of 1, 2 and 3 steps.
PARAMS: dict[str, Any] = {
    "sparsity": 0.4,
    "seed": 3,
    "methods": ["isp_plus", "progressive", "lth", "movement", "granet"],
    "training": training_for(2),
    "isp": {"compression_rate": 0.2, "calibration": 0.1, "denoisers": 2, "look_ahead": 4},
    "imp": {"compression_rate": 0.3},
}


# Digests


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@LAW
@given(st.lists(JSON, max_size=4))
def test_equal_parts_have_one_digest_whatever_the_order_of_their_keys(parts: list) -> None:
    turned = [dict(reversed(p.items())) if isinstance(p, dict) else p for p in parts]
    assert digest(*parts) == digest(*turned)
    assert len(digest(*parts)) == 16


@LAW
@given(
    st.lists(st.integers() | st.text(max_size=4), max_size=4), st.integers() | st.text(max_size=4)
)
def test_other_parts_have_another_digest(parts: list, more: Any) -> None:
    assert digest(*parts) != digest(*parts, more)
    assert digest(*parts) != digest(parts)
    assert digest(more, *parts) == digest(*[more, *parts])


def test_each_bit_of_a_tensor_counts_and_its_name_and_shape() -> None:
    one = {"w": torch.tensor([[0.0, 1.0], [2.0, 3.0]])}
    others = [
        {"v": one["w"]},
        {"w": one["w"].view(4)},
        {"w": one["w"].double()},
        {"w": torch.tensor([[-0.0, 1.0], [2.0, 3.0]])},
        {"w": torch.nextafter(one["w"], torch.tensor(9.0))},
        {"w": one["w"].t()},
        {"w": one["w"], "v": one["w"]},
    ]
    found = [digest(one), *map(digest, others)]
    assert len(set(found)) == len(found)
    assert digest({"w": one["w"].clone()}) == found[0]
    assert digest({"w": one["w"].t().contiguous().t()}) == found[0]  # how it lies in memory
    assert digest({"a": one["w"], "b": one["w"] + 1}) == digest({"b": one["w"] + 1, "a": one["w"]})


# The store


def entries(store: Path) -> set[str]:
    """What a store holds."""
    return {path.name for path in store.iterdir() if path.is_dir()} if store.is_dir() else set()


def fill(store: Store, name: str, age: float, size: int = 1000) -> Path:
    """An entry of some bytes that was used a while ago."""
    with store.entry(name) as folder:
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(size))
    now = folder.stat().st_mtime
    os.utime(folder, (now - age, now - age))
    return folder


def test_equal_parts_share_an_entry_and_others_do_not(tmp_path: Path) -> None:
    store, again = Store(tmp_path / "store"), Store(tmp_path / "store")
    with store.entry("a", {"x": 1, "y": [2.5]}, 3) as one:
        one.mkdir()
    with again.entry("a", {"y": [2.5], "x": 1}, 3) as other:
        assert other == one and other.is_dir()
    for parts in (["a", {"x": 1, "y": [2.5]}], ["a", {"x": 1, "y": [2.5]}, 4], ["b", {}, 3]):
        with store.entry(*parts) as other:
            assert other != one and not other.exists()


def test_the_longest_unused_entries_go_first_and_no_more_than_must(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folders = [fill(store, name, age) for name, age in (("a", 30), ("b", 10), ("c", 40), ("d", 20))]
    store.trim(4000)
    assert all(folder.is_dir() for folder in folders)
    store.trim(3999)
    assert [folder.is_dir() for folder in folders] == [True, True, False, True]
    with store.entry("a"):  # taken up again: it was used just now
        pass
    store.trim(2000)
    assert [folder.is_dir() for folder in folders] == [True, True, False, False]
    store.trim(0)
    assert entries(tmp_path) == set()


def test_what_is_in_use_stays_however_long_it_has_not_been_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = fill(store, "old", 1000), fill(store, "new", 0)
    with store.entry("old") as held:
        os.utime(held, (1, 1))
        Store(tmp_path).trim(0)
        assert old.is_dir() and not new.is_dir()
    Store(tmp_path).trim(0)
    assert not old.is_dir()


def test_what_another_process_works_on_is_not_forgotten(tmp_path: Path) -> None:
    """It waited for the same training, and takes it; then it forgets it itself."""
    store, another = Store(tmp_path), Store(tmp_path)
    for one in (store, another):
        with one.entry("a", keep=False) as folder:
            folder.mkdir(exist_ok=True)
    kept = fill(store, "b", 0)
    with another.entry("a", keep=False):
        store.forget()
        assert folder.is_dir()
    another.forget()
    assert not folder.is_dir() and kept.is_dir()


@pytest.mark.parametrize("asked", ["is_dir", "is_file"])
def test_trimming_ignores_what_another_process_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    store = Store(tmp_path)
    going, old = fill(store, "going", 10), fill(store, "old", 20)
    answer = getattr(Path, asked)

    def then_gone(path: Path) -> bool:
        found = answer(path)
        if going in (path, *path.parents):
            shutil.rmtree(going, ignore_errors=True)
        return found

    monkeypatch.setattr(Path, asked, then_gone)
    store.trim(1000)
    assert entries(tmp_path) == {old.name}  # what is gone counts no more
    store.trim(999)
    assert entries(tmp_path) == set()


def test_trimming_a_store_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "nowhere").trim(0)
    assert not (tmp_path / "nowhere").exists()


def test_a_finished_run_forgets_its_own_entries_alone(tmp_path: Path) -> None:
    store, another = Store(tmp_path / "store"), Store(tmp_path / "store")
    fill(store, "mine", 0)
    theirs = fill(another, "theirs", 0)
    store.remove_used()
    assert entries(tmp_path / "store") == {theirs.name}
    another.remove_used()
    assert not (tmp_path / "store").exists()  # nothing is left behind
    store.remove_used()  # nor is twice an error


def test_the_limit_is_twenty_gigabytes_or_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_LIMIT, raising=False)
    assert store_limit() == 20e9
    monkeypatch.setenv(STORE_LIMIT, "0.5")
    assert store_limit() == 5e8


@pytest.mark.parametrize("said", ["20GB", "", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused_before_anything_is_trained(
    store: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv(STORE_LIMIT, said)
    taken = steps_taken(monkeypatch)
    for stage in (["find_ticket", "--method", "isp_plus"], ["plan"]):
        with pytest.raises(UserError) as refused:
            run_script(*stage)
        told = f"INSTANT_SOUP_STORE_GB: {said!r} is not allowed; allowed: a number at least 0"
        assert str(refused.value) == told
    assert not taken


# Damage


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "first_moments.safetensors", "cost.json", "curve.json", None]
)
def test_a_damaged_training_is_forgotten_and_taken_again(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str | None
) -> None:
    """A record is a copy of what can be made again; damaged, it must not pass for it."""

    def record() -> checkpoints.Record:
        return checkpoints.Record(
            tmp_path / "entry", Cost(), last=3, row_every=1, validate_every=1,
            row=lambda *_: {}, show=lambda _: None,
        )  # fmt: skip

    weights = {"w": torch.arange(6.0)}
    start, kept = State(weights), State({"w": weights["w"] + 1}, weights, weights, step=2)
    first = record()
    first.add({"step": 1, "train_loss": 0.5})
    first.save(kept)
    again = record()
    assert_same(again.resume(start, "x"), kept)
    assert again.curve == first.curve
    if name is None:
        (tmp_path / "entry/losses.json").unlink()
    else:
        file = tmp_path / "entry" / name
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
    capsys.readouterr()
    again = record()
    assert again.resume(start, "x") is start and again.curve == []
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ") and (name or "losses.json") in warning
    assert warning.count("\n") == 1 and not (tmp_path / "entry").exists()


def test_a_damaged_mask_of_a_search_is_found_again(
    store: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = Path("models/tickets/isp_plus/found/mask.safetensors")
    run_script("find_ticket", "--method", "isp_plus")
    before = masks.load(ticket)
    found = [e / "mask.safetensors" for e in store.iterdir() if (e / "mask.safetensors").exists()]
    for file in found:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1 << 7
        file.write_bytes(content)
    run_script("find_ticket", "--method", "isp_plus")
    assert capsys.readouterr().err.count("damaged mask") == len(found) > 0
    assert same(masks.load(ticket), before)


# What makes an entry foreign


@pytest.fixture(scope="module")
def project(tiny_bert: Path, tiny_data: Path, tmp_path_factory) -> Path:
    """A project of a tiny BERT, up to models/start."""
    return make_project(tmp_path_factory.mktemp("project"), tiny_bert, tiny_data, **PARAMS)


@pytest.fixture
def store(
    project: Path, tiny_bert: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Work in the project, with its own plan and a store of this test's own; returns its folder."""
    own = work_in(project, tmp_path, monkeypatch)
    write_plan(params(tiny_bert, tiny_data))
    return own


def params(model: Path, dataset: Path, **changes: Any) -> dict[str, Any]:
    """The project's params.yaml, with changes to sections and top-level keys."""
    found = read_yaml(ROOT / "params.yaml")
    found |= {"model": f"local:{model}", "dataset": f"local:{dataset}"}
    for key, value in (*PARAMS.items(), *changes.items()):
        found[key] = {**found[key], **value} if isinstance(value, dict) else value
    return found


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Go on with another store, an empty one."""
    monkeypatch.setenv("DVC_ROOT", str(folder))


def recipe_of_dense() -> Recipe:
    return TrainStage.read("models/plan/dense.yaml").recipe


class Idle(PipelineRun):
    """A run that trains nothing: only where it would keep it is asked."""

    of_teacher: Any = None

    def take(self, network: Any, state: State, *given: Any, **named: Any) -> State:
        return state


def entry_of(
    recipe: Recipe,
    last: int = 3,
    start: tuple[State, masks.Mask] | None = None,
    how: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """The name of a training's entry."""
    run = Idle(*(start or load_start(START)), recipe, FakeRun(), **more)
    run.train(last, "test", **(how or {}))
    assert run.store is not None
    return run.store.used[-1].name


OTHER_VALUES: dict[str, Any] = {
    **{"epochs": 3.0, "learning_rate": 1e-3, "weight_decay": 0.01, "batch_size": 8},
    **{"warmup": 0.1, "clip_norm": 0.5, "dropout": 0.2, "freeze_embeddings": False, "crop": 0.1},
    **{"precision": "bf16", "processes": 2, "evaluations": 7, "seed": 4},
    **{"metric": "matthews", "flip": True, "cycles": 3, "lowest_rate": 0.1},
    **{"teacher": "dense", "temperature": 4.0, "hardness": 0.5},
    **{"retrain": "mask_lora", "retrain_rate": 2.0, "lora_rank": 4, "lora_alpha": 8.0},
}


@pytest.mark.parametrize("setting", [field.name for field in fields(Recipe)])
def test_a_training_under_another_setting_is_another(store: Path, setting: str) -> None:
    recipe = recipe_of_dense()
    other = replace(recipe, **{setting: OTHER_VALUES[setting]})
    assert other != recipe
    assert entry_of(recipe) == entry_of(recipe) != entry_of(other)
    # A recipe of one training alone, as a network of a soup has it, counts as well; but the budget,
    # over which the rate falls, is the run's.
    alone = entry_of(recipe, how={"recipe": other})
    assert alone != entry_of(recipe)
    assert (alone != entry_of(other)) == (setting in ("epochs", "batch_size"))


def test_a_training_of_another_start_end_or_engine_is_another(store: Path) -> None:
    recipe, (state, mask) = recipe_of_dense(), load_start(START)
    moved = state.copy()
    moved.weights["classifier.bias"] += 1
    half = scores.magnitude(prunable(state), 0.5)
    found = [
        entry_of(recipe),
        entry_of(recipe, last=4),
        entry_of(recipe, start=(moved, mask)),
        entry_of(recipe, start=(state, half)),
        entry_of(recipe, engine="of another version"),
        entry_of(recipe, how={"keep_gradients": True}),
    ]
    assert len(set(found)) == len(found)


def test_a_state_is_named_by_the_mask_it_was_pruned_by_and_what_it_was_moved_to() -> None:
    weights = {"w": torch.tensor([[1.0, 2.0]])}
    first, second = ({"w": torch.tensor([[a, not a]])} for a in (True, False))
    cuts = [masks.Cut(first, {"w": torch.tensor([[moved, 0.0]])}) for moved in (1.5, 2.5)]
    found = []
    for one in (first, second, *cuts):
        run = BareRun(weights)
        run.prune(one)
        found.append((run.origin, run.own_state))
    for how in ("the mean", "another"):
        run = BareRun(weights)
        run.moved(how)
        found.append((run.origin, run.own_state))
    assert len({origin for origin, _ in found}) == 6
    assert [moved for _, moved in found] == [False, False, True, True, True, True]


def test_a_methods_own_sources_count_where_it_finds_masks_and_not_where_it_trains(
    store: Path,
) -> None:
    """So LTH's dense network is the dense row's, and a changed search is searched again."""
    recipe = recipe_of_dense()
    assert entry_of(recipe, code="1") == entry_of(recipe, code="2")
    pruner, another = {"key": ["granet", {}]}, {"key": ["granet", {"every": 1}]}
    assert entry_of(recipe, how=pruner, code="1") != entry_of(recipe, how=pruner, code="2")
    assert entry_of(recipe, how=pruner) != entry_of(recipe, how=another)

    def search(own: str, step: int = 0) -> str:
        run = PipelineRun(*load_start(START), recipe, FakeRun(), code=own)
        run.state.step = step
        run.search(["mine"], lambda: run.mask)
        assert run.store is not None
        return run.store.used[-1].name

    assert search("1") == search("1") != search("2")
    assert search("1", 3) != search("1")  # after other steps the weights are others


def test_other_data_are_foreign(store: Path, tmp_path: Path, project: Path, monkeypatch) -> None:
    before = entry_of(recipe_of_dense())
    shutil.copytree(project, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert entry_of(recipe_of_dense()) == before
    shutil.copy("data/encoded/test.safetensors", "data/encoded/validation.safetensors")
    assert entry_of(recipe_of_dense()) != before


def test_the_engines_digest_is_that_of_all_it_imports_in_whatever_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(code.PACKAGE, tmp_path / "instant_soup")
    monkeypatch.setattr(code, "PACKAGE", package)
    engine = [package / ENGINE.relative_to(ROOT / "src/instant_soup")]

    def change(name: str) -> str:
        (package / name).write_text((package / name).read_text() + "\nANOTHER = True\n")
        return code.digest(engine)

    seen = [code.digest(engine)]
    inside = ("training/loop.py", "training/run.py", "models/clip.py", "models/bert.py")
    for name in (*inside, "data/batches.py", "sparsity/masks.py", "seeds.py", "config/fields.py"):
        seen.append(change(name))
        assert len(set(seen)) == len(seen), name
    for name in ("reports/paper.py", "tickets/card.py", "methods/isp.py", "grids/cells.py"):
        assert change(name) == seen[-1], name
    monkeypatch.undo()  # what was found of the copy says nothing of the package
    code._uses.cache_clear()
    assert not any(package in file.parents for file in code.sources([ENGINE]))


def test_the_plan_tells_all_that_train_of_the_same_engine_and_each_of_its_own_code(
    tiny_bert: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    files = plan_with_code(params(tiny_bert, tiny_data))
    engine = code.digest([ENGINE])
    training = ("dense", "calibrate_0", "weak_masks_0", "ticket_lth", "retrain_lth", "retrain_isp")
    assert {files[name]["engine"] for name in training} == {engine}
    own = ["dense", "calibrate_0", "weak_masks_0", "ticket_lth", "ticket_granet", "retrain_isp"]
    codes = {files[name]["code"] for name in own}
    assert len(codes) == len(own) and all(len(one) == 16 for one in codes)
    assert "code" not in files["calibrate_9"]  # not needed


# What an interruption leaves


MOVING = ("movement", "granet")


@pytest.fixture(scope="module")
def uninterrupted(
    project: Path, tiny_bert: Path, tiny_data: Path, tmp_path_factory: Any
) -> dict[str, PipelineRun]:
    """Method → its search without a stop, with a store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        work_in(project, tmp_path_factory.mktemp("whole"), patch)
        write_plan(params(tiny_bert, tiny_data))
        return {method: found_by(method) for method in MOVING}


@pytest.mark.parametrize("method", MOVING)
@pytest.mark.parametrize("stop", [1, 6, 13])
def test_an_interrupted_search_with_a_moving_mask_goes_on_to_the_very_same_bits(
    store: Path, uninterrupted: dict, monkeypatch: pytest.MonkeyPatch, method: str, stop: int
) -> None:
    whole = uninterrupted[method]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(stop, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        found_by(method)
    (entry,) = entries(store)
    taken = steps_taken(monkeypatch)
    resumed = found_by(method)
    assert len(taken) == whole.cost.steps - stop
    assert_same(resumed.state, whole.state)
    assert same(resumed.mask, whole.mask) and masks.sparsity(resumed.mask) > 0.39
    assert resumed.curve == whole.curve
    assert (resumed.cost.steps, resumed.cost.sparse_flops) == (
        whole.cost.steps,
        pytest.approx(whole.cost.sparse_flops),
    )
    assert entries(store) == {entry}


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [("calibrate", ("--round", 0)), ("sparse_retrain", ("--method", "isp_plus"))],
)
def test_a_finished_training_stays_until_its_output_is_in_place(
    store: Path, monkeypatch: pytest.MonkeyPatch, stage: str, arguments: tuple
) -> None:
    run_script("find_ticket", "--method", "isp_plus")
    kept = entries(store)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(state_module, "write_state", full)
        run_script(stage, *arguments)
    assert len(entries(store)) == len(kept) + 1
    taken = steps_taken(monkeypatch)
    run_script(stage, *arguments)
    assert not taken and entries(store) == kept


# What rows share


def test_the_rounds_of_two_sparsities_are_trained_once(
    store: Path, tiny_bert: Path, tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Rounds of 1, 2 and 3 steps to 0.2, 0.4 and 0.6: the third is all that 0.6 adds to 0.4."""
    taken = steps_taken(monkeypatch)
    run_script("find_ticket", "--method", "isp_plus")
    assert len(taken) == 3
    capsys.readouterr()
    write_plan(params(tiny_bert, tiny_data, sparsity=0.6))
    run_script("find_ticket", "--method", "isp_plus")
    assert len(taken) == 6
    said = capsys.readouterr().out
    for i, step in ((0, 1), (1, 3)):
        assert f"round {i}: taking the finished training from the checkpoint at step {step}" in said
    assert "round 2: taking" not in said

    shared = state_in("models/tickets/isp_plus/found")
    mask = masks.load("models/tickets/isp_plus/found/mask.safetensors")
    told = masks.describe("models/tickets/isp_plus/found/mask.safetensors")
    curve = Path("models/tickets/isp_plus/found/curve.csv").read_text()
    elsewhere(monkeypatch, tmp_path / "none before")
    run_script("find_ticket", "--method", "isp_plus")
    assert len(taken) == 6 + 6
    assert_same(state_in("models/tickets/isp_plus/found"), shared)
    assert same(masks.load("models/tickets/isp_plus/found/mask.safetensors"), mask)
    assert Path("models/tickets/isp_plus/found/curve.csv").read_text() == curve
    alone = masks.describe("models/tickets/isp_plus/found/mask.safetensors")
    for part in ("steps", "search_steps", "flops", "sparse_flops"):
        assert alone["cost"][part] == pytest.approx(told["cost"][part])


def test_two_methods_share_no_more_than_the_first_round(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to their first pruning they are the same training; behind it, other networks."""
    taken = steps_taken(monkeypatch)
    found_by("progressive")
    found_by("isp_plus")
    assert len(taken) == 3 + 2


def test_lths_dense_network_is_the_dense_rows_with_each_stages_own_sources(
    store: Path, tiny_bert: Path, tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(plan_module, "STAGES", ROOT / "stages")
    for name, contents in plan_with_code(params(tiny_bert, tiny_data)).items():
        write_yaml(f"models/plan/{name}.yaml", contents)
    taken = steps_taken(monkeypatch)
    run_script("dense_finetune")
    assert len(taken) == 20
    run_script("find_ticket", "--method", "lth")
    assert len(taken) == 20 + 20  # its first round; the second and last is left to train
    assert "dense: taking the finished training from the checkpoint at step 20" in (
        capsys.readouterr().out
    )
    mask = masks.load("models/tickets/lth/found/mask.safetensors")
    elsewhere(monkeypatch, tmp_path / "none before")
    run_script("find_ticket", "--method", "lth")
    assert len(taken) == 40 + 40
    assert same(masks.load("models/tickets/lth/found/mask.safetensors"), mask)


def weak_masks(count: int) -> list[tuple[masks.Mask, dict[str, Any]]]:
    """A round's weak masks, and what is told of them but for the seconds that they took."""
    found = []
    for n in range(count):
        path = f"models/isp/round_0/weak/{n}.safetensors"
        told = masks.describe(path)
        del told["cost"]["seconds"], told["cost"]["peak_memory"]
        found.append((masks.load(path), told))
    return found


def assert_masks(one: list, other: list) -> None:
    for (mask, told), (another, others) in zip(one, other, strict=True):
        assert same(mask, another) and told == others


@pytest.mark.parametrize(("number", "trained"), [(3, 4), (1, 0)])
def test_a_weak_mask_is_found_once_whatever_other_denoisers_there_are(
    store: Path, tiny_bert: Path, tiny_data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, number: int, trained: int,
) -> None:  # fmt: skip
    run_script("calibrate", "--round", 0)
    taken = steps_taken(monkeypatch)
    run_script("weak_mask", "--round", 0)
    assert len(taken) == 2 * 4
    before = weak_masks(2)
    write_plan(params(tiny_bert, tiny_data, isp={"denoisers": number}))
    run_script("weak_mask", "--round", 0)
    assert len(taken) == 2 * 4 + trained
    after = weak_masks(number)
    assert_masks(before[:number], after[:2])
    elsewhere(monkeypatch, tmp_path / "none before")
    run_script("weak_mask", "--round", 0)
    assert_masks(after, weak_masks(number))


@pytest.mark.parametrize(
    "change",
    [
        {"look_ahead": 5},
        {"score": "fisher"},
        {"learning_rate_range": [1.0, 2.0]},
        {"subset": 0.2},
    ],
)
def test_a_weak_mask_of_another_look_ahead_is_found_anew(
    store: Path, tiny_bert: Path, tiny_data: Path, monkeypatch, change: dict[str, Any]
) -> None:
    run_script("calibrate", "--round", 0)
    run_script("weak_mask", "--round", 0)
    write_plan(params(tiny_bert, tiny_data, isp=change))
    taken = steps_taken(monkeypatch)
    run_script("weak_mask", "--round", 0)
    assert len(taken) == 2 * change.get("look_ahead", 4)


def test_a_stage_keeps_no_more_than_the_limit(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script("find_ticket", "--method", "isp_plus")
    assert len(entries(store)) == 4  # two rounds, two masks
    monkeypatch.setenv(STORE_LIMIT, "0")
    run_script("find_ticket", "--method", "progressive")
    assert entries(store) == set()
