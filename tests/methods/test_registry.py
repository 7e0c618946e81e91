"""Methods as a whole: each is complete, none takes another's place, and none loses its seed."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from helpers import ROOT, BareRun, make_project, run_row, run_script, same
from instant_soup.config.fields import (
    FAMILIES,
    LIBRARY,
    PRESETS,
    Rule,
    default_of,
    integer,
    setting,
    settings_of,
    some_of,
)
from instant_soup.config.sections import Training
from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.methods import registry
from instant_soup.methods.base import (
    REGISTRY,
    AtStart,
    Method,
    Throughout,
    key_of,
    keys_of,
    register,
)
from instant_soup.methods.rounds import OnTheWay
from instant_soup.pipeline import plan as plan_module
from instant_soup.pipeline.plan import plan
from instant_soup.reports.results import label
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.training.checkpoints import digest
from instant_soup.training.gradients import mean_gradient
from instant_soup.training.run import Run
from instant_soup.training.state import Weights

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

METHODS = registry.methods()

# What is there


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_all_that_tables_and_settings_tell_of_it(name: str) -> None:
    method = METHODS[name]
    assert method.name == name and method.title.strip() == method.title != ""
    assert str(method.__doc__).strip() and not str(method.__doc__).startswith(method.__name__)
    assert name in registry.file_of(name).read_text()
    assert registry.file_of(name).parent == registry.FOLDER
    assert set(method.looks_at) <= {"seed", "data"}
    assert set(method.needs) <= METHODS.keys()
    assert method.style is None or len(method.style) == 2
    assert label(name) == method.title
    assert all(field.metadata["doc"] for field in settings_of(method).values())


def test_names_titles_and_marks_are_each_one_methods() -> None:
    for part in ("name", "title", "style"):
        found = [getattr(method, part) for method in METHODS.values()]
        assert len(set(found)) == len(found), part


def test_methods_come_in_the_order_of_table_rows() -> None:
    orders = [(method.order, name) for name, method in METHODS.items()]
    assert orders == sorted(orders)
    assert registry.selectable() == tuple(n for n in METHODS if n not in ("dense", "isp"))
    assert registry.dense_rows() == ("dense", "uniform_soup", "greedy_soup", "instant_model_soup")
    assert label("of a later version") == "of a later version"


def test_every_file_of_the_folder_has_a_method() -> None:
    files = {registry.file_of(name).stem for name in METHODS}
    there = {path.stem for path in registry.FOLDER.glob("*.py")}
    assert files == there - {"__init__", *registry.SHARED}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_does_what_its_kind_does(name: str) -> None:
    method = METHODS[name]
    own = {
        AtStart: ("scores", "mask"),
        OnTheWay: ("find_mask",),
        Throughout: ("pruner", "settled"),
    }
    for kind, parts in own.items():
        if issubclass(method, kind):
            assert any(getattr(method, part) is not getattr(kind, part) for part in parts)
            return
    assert method.find is not Method.find


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_allowed_and_a_method_is_made_of_them(name: str) -> None:
    method = METHODS[name]
    for family in FAMILIES:
        for preset in (*PRESETS, LIBRARY):
            for key, field in settings_of(method).items():
                value = default_of(field, family, preset)
                assert value is None or field.metadata["rule"].test(value), (key, preset)
        for preset in PRESETS:
            made = registry.create(name, family, preset, {})
            assert registry.rebuild(name, vars(made)) == made
            assert registry.variant_parts(made, family, preset) == []


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_early_birds_budget_has_more_masks_than_its_window(family: str, preset: str) -> None:
    """With no more of them, none can be drawn before the budget's end."""
    epochs = default_of(settings_of(Training)["epochs"], family, preset)
    method: Any = registry.create("early_bird", family, preset, {})
    assert epochs / method.every > method.window


def another(value: Any, rule: Rule) -> Any:
    """A value beside this one that a setting may have."""
    if isinstance(value, list):  # low and high
        return [value[0], value[1] + 0.5]
    others = rule.allowed.split(" | ") if isinstance(value, str) else [0.9 * value, value + 1]
    others += [0.5, not value]
    return next(one for one in others if one != value and rule.test(one))


def told(pruner: Any) -> dict[str, Any]:
    """What a pruner was made of: numbers, words, steps and its first mask."""
    plain = {n: v for n, v in vars(pruner).items() if isinstance(v, int | float | str)}
    mask = {name: kept.tolist() for name, kept in pruner.mask.items()}
    return {**plain, "switches": getattr(pruner, "switches", None), "mask": mask}


@pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if issubclass(kind, Throughout)])
def test_each_setting_of_a_mask_that_moves_reaches_its_pruner(name: str) -> None:
    run, method = BareRun({"w": torch.randn(9, 20)}), registry.create(name, "bert", "paper", {})
    run.total = 1000
    assert told(method.pruner(run, 0.5)) == told(method.pruner(run, 0.5))
    for key, field in settings_of(type(method)).items():
        other = replace(method, **{key: another(getattr(method, key), field.metadata["rule"])})
        assert told(other.pruner(run, 0.5)) != told(method.pruner(run, 0.5)), key


@pytest.mark.parametrize(
    "name",
    [n for n, kind in METHODS.items() if issubclass(kind, AtStart | OnTheWay | Throughout)],
)
def test_what_is_found_is_kept_by_the_name_and_all_settings_that_it_depends_on(name: str) -> None:
    keys: list[str] = []

    class Keyed(BareRun):
        def search(self, key: Any, *_: Any) -> Any:
            keys.append(digest(key))
            return self.mask

        def train(self, *_: Any, key: Any = None, **how: Any) -> None:
            keys.append(digest(key))

    def find(method: Method, sparsity: float = 0.5, target: float = 0.75) -> None:
        run = Keyed({"w": torch.ones(9, 20)})
        run.total, run.target = 1000, target
        if isinstance(method, OnTheWay):
            method.prune_round(run, 0, sparsity)
        else:
            method.find(run, sparsity)

    method: Any = registry.create(name, "bert", "paper", {})
    find(method)
    find(method)
    assert keys.pop() == keys[0]
    find(method, 0.4)
    if isinstance(method, OnTheWay):
        find(method, 0.5, 0.5)  # its last round
    for key, field in settings_of(type(method)).items():
        value = getattr(method, key)
        other = 0.5 if value is None else another(value, field.metadata["rule"])
        find(replace(method, **{key: other}))
    assert len(set(keys)) == len(keys)


def test_a_key_of_params_yaml_means_the_same_to_all_its_methods() -> None:
    meanings = defaultdict(set)
    for method in METHODS.values():
        for key, place in keys_of(method).items():
            field = settings_of(method)[key].metadata
            meanings[place].add(str((field["doc"], field["rule"].allowed, field["defaults"])))
    assert [place for place, said in meanings.items() if len(said) > 1] == []


def test_an_unknown_method_is_answered_by_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^method: unknown onehot; did you mean one_shot\?$"):
        registry.method_named("onehot")
    with pytest.raises(UserError, match=r"^method: unknown zzz; known: dense, random, "):
        registry.method_named("zzz")


# What is added


@pytest.fixture
def added() -> Iterator[None]:
    """What a test registers is gone after it; params.yaml may list it meanwhile."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def plan_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let params.yaml list what was registered after the plan was read."""

    @dataclass(frozen=True, kw_only=True)
    class Top(plan_module.Top):
        methods: list[str] = setting("rows", some_of(*registry.selectable()))

    monkeypatch.setattr(plan_module, "Top", Top)


def made(called: str, /, **own: Any) -> type[Method]:
    """A new class of a method, in a file of its own as it were."""
    return dataclass(frozen=True, kw_only=True)(type(called, (AtStart,), own))


@pytest.mark.parametrize(
    "own", [{}, {"name": "mine"}, {"title": "Mine"}, {"name": 1, "title": "x"}]
)
def test_a_method_without_name_or_title_is_refused(added, own: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^Mine: a method needs a (name|title)$"):
        register(made("Mine", **own))
    assert registry.methods() == METHODS


def test_another_methods_name_is_refused(added) -> None:
    message = r"^Mine: snip is SNIP's name already$"
    with pytest.raises(TypeError, match=message):
        register(made("Mine", name="snip", title="Mine"))
    with pytest.raises(TypeError, match=message):  # a name that was inherited
        register(type("Mine", (METHODS["snip"],), {}))
    # A copy of a file, in which nobody has changed the names.
    copied = made("SNIP", name="snip", title="Mine")
    copied.__qualname__ = METHODS["snip"].__qualname__
    with pytest.raises(TypeError, match=r"^SNIP: snip is SNIP's name already$"):
        register(copied)
    assert registry.methods() == METHODS


def test_a_file_that_is_read_again_is_no_other_method(added) -> None:
    assert register(METHODS["snip"]) is METHODS["snip"]
    again = made("SNIP", name="snip", title="SNIP", __module__=METHODS["snip"].__module__)
    assert register(again) is again and registry.methods()["snip"] is again


@dataclass(frozen=True, kw_only=True)
class BySeed(AtStart):
    """Random scores; it says nothing of what it looks at."""

    name: ClassVar[str] = "by_seed"
    title: ClassVar[str] = "By the seed"

    def scores(self, run: Run) -> Weights:
        draws = torch.Generator().manual_seed(run.seed)
        return {name: torch.rand(w.shape, generator=draws) for name, w in run.weights.items()}


@dataclass(frozen=True, kw_only=True)
class ByGradient(AtStart):
    """The largest gradients of some batches; it says nothing of what it looks at."""

    name: ClassVar[str] = "by_gradient"
    title: ClassVar[str] = "By gradients"

    batches: int = setting("batches", integer(1), default=2)

    def scores(self, run: Run) -> Weights:
        return {name: g.abs() for name, g in mean_gradient(run, self.batches).items()}


def test_an_added_method_has_a_section_and_a_plan(added, monkeypatch: pytest.MonkeyPatch) -> None:
    register(ByGradient)
    plan_knows(monkeypatch)
    assert key_of(ByGradient, "batches") == "by_gradient.batches"
    raw = read_yaml(ROOT / "params.yaml")
    params = {**raw, "methods": ["by_gradient"], "by_gradient": {"batches": 5}}
    files = plan(params)
    assert files["ticket_by_gradient"]["settings"] == {"batches": 5}
    assert files["evaluate_by_gradient"]["variant"] == "by_gradient.batches=5"
    with pytest.raises(UserError, match=r"by_gradient\.batches: 0 is not allowed"):
        plan({**params, "by_gradient": {"batches": 0}})


TRAINING = {"epochs": 1, "batch_size": 16, "precision": "fp32", "learning_rate": 2e-3}


@pytest.mark.parametrize("method", [BySeed, ByGradient])
def test_a_new_criterion_gets_the_seed_and_the_batches_without_asking(
    added, tiny_bert: Path, tiny_data: Path, tmp_path: Path, monkeypatch, method: type[AtStart]
) -> None:
    register(method)
    plan_knows(monkeypatch)
    found: list[Mask] = []
    for seed in (0, 1, 0):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        rows = {"methods": [method.name], "seed": seed, "sparsity": 0.5, "training": TRAINING}
        make_project(folder, tiny_bert, tiny_data, **rows)
        monkeypatch.chdir(folder)
        run_row(method.name)
        found.append(masks.load(f"models/retrained/{method.name}/mask.safetensors"))
    assert not same(found[0], found[1]) and same(found[0], found[2])
    kept, total = masks.count(found[0])
    assert total == 2 * kept


@pytest.mark.parametrize(
    ("method", "looks_at", "missing"),
    [
        (BySeed, (), "seed"),
        (BySeed, ("data",), "seed"),
        (ByGradient, (), "data"),
        (ByGradient, ("seed",), "data"),
    ],
)
def test_a_method_that_looks_at_what_it_does_not_name_is_an_error(
    added, tiny_bert: Path, tiny_data: Path, tmp_path: Path, monkeypatch,
    method: type[AtStart], looks_at: tuple[str, ...], missing: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(method, "looks_at", looks_at)
    register(method)
    plan_knows(monkeypatch)
    make_project(tmp_path, tiny_bert, tiny_data, methods=[method.name], training=TRAINING)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttributeError, match=f"does not look at the {missing} "):
        run_script("find_ticket", "--method", method.name)
    assert not Path(f"models/tickets/{method.name}/found/mask.safetensors").exists()


def test_looking_ahead_and_training_are_looking_at_the_data() -> None:
    run = BareRun({"w": torch.ones(2, 2)}, batches=[{}] * 9, looks_at=("seed",))
    protocol = run.draw_protocol([1.0, 1.0], [0.0, 0.0], 1.0, 0)
    for ask in (lambda: run.look_ahead(protocol, 1, "test"), lambda: run.train(1, "test")):
        with pytest.raises(AttributeError, match="does not look at the data"):
            ask()
    unseeded = BareRun({"w": torch.ones(2, 2)}, batches=[{}] * 9, looks_at=("data",))
    with pytest.raises(AttributeError, match="does not look at the seed"):
        unseeded.draw_protocol([1.0, 1.0], [0.0, 0.0], 1.0, 0)


@pytest.mark.parametrize("name", ["one_shot", "layerwise", "random", "erdos_renyi"])
def test_what_looks_at_no_data_is_planned_alike_whatever_the_training(name: str) -> None:
    raw = {**read_yaml(ROOT / "params.yaml"), "methods": [name]}
    one = plan(raw)
    other = plan({**raw, "training": {**raw["training"], "epochs": 2}})
    assert one[f"ticket_{name}"] == other[f"ticket_{name}"]
    assert one[f"retrain_{name}"] != other[f"retrain_{name}"]
