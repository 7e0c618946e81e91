"""Settings as fields: rules and their words, defaults by preset, checks, and stage files."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import ROOT
from instant_soup.config.fields import (
    BOOLEAN,
    LIBRARY,
    TEXT,
    ByFamily,
    Rule,
    Stored,
    again,
    as_number,
    as_text,
    check_names,
    check_value,
    default_of,
    defaults_of,
    integer,
    make,
    number,
    one_of,
    or_word,
    setting,
    settings_of,
    shares,
    some_of,
    span,
)
from instant_soup.config.sections import Data, Pretraining, Recipe, Training
from instant_soup.data.datasets import Dataset
from instant_soup.errors import UserError
from instant_soup.files import read_yaml, write_yaml
from instant_soup.methods.rounds import Schedule
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel
from instant_soup.pipeline.plan import plan
from instant_soup.pipeline.stage_files import (
    CalibrateStage,
    EvaluateStage,
    ExportStage,
    RetrainStage,
    SoupStage,
    TablesStage,
    TicketStage,
    TrainStage,
    WeakMasksStage,
)

LAW = settings(deadline=None, max_examples=100)
NONSENSE = [None, True, False, "", "x", "1", [], [1], {}, math.nan, math.inf, -math.inf, object()]

# Rules


RULES: list[tuple[Rule, str, list[Any], list[Any]]] = [
    (integer(1), "a whole number from 1", [1, 7, 10**9], [0, -1, 1.0, True, "1", None]),
    (integer(0, 3), "a whole number from 0 to 3", [0, 3], [4, -1, False]),
    (number(0, 1), "a number at least 0 and at most 1", [0, 1, 0.5], [-0.1, 1.1, True, "0.5"]),
    (
        number(0, 1, low_too=False, high_too=False),
        "a number more than 0 and less than 1",
        [0.001, 0.999],
        [0, 1, 0.0, 1.0, math.nan],
    ),
    (number(0, math.inf, low_too=False), "a number more than 0", [1e-9, 1e9], [0, math.inf, -1]),
    (one_of("a", "b"), "a | b", ["a", "b"], ["c", "", None, ["a"], 1]),
    (
        span(0, low_too=False),
        "[low, high] with numbers above 0, low ≤ high",
        [[1, 1], [0.5, 2], (1, 2)],
        [[0, 1], [2, 1], [1], [1, 2, 3], 1, [1, "2"], [True, 2], None],
    ),
    (
        span(0, low_too=True, high=1),
        "[low, high] with numbers from 0, low ≤ high < 1",
        [[0, 0], [0, 0.99]],
        [[0, 1], [0.5, 1.5]],
    ),
    (
        some_of("a", "b"),
        "a list of a | b, each at most once",
        [[], ["b", "a"]],
        [["a", "a"], ["c"], "a", [["a"]], None],
    ),
    (shares(), "a list of numbers from 0 to 1", [[0], [0.5, 1, 0.5]], [[], [2], 0.5, ["0.5"]]),
    (or_word("all", integer(2)), "all | a whole number from 2", ["all", 2], ["some", 1, None]),
    (BOOLEAN, "true | false", [True, False], [0, 1, "true", None]),
    (TEXT, "a text", ["x"], ["", 1, None, ["x"]]),
]


@pytest.mark.parametrize(
    ("rule", "words", "good", "bad"), RULES, ids=[words for _, words, _, _ in RULES]
)
def test_a_rule_allows_what_its_words_say(rule: Rule, words: str, good: list, bad: list) -> None:
    assert rule.allowed == words
    assert [value for value in good if not rule.test(value)] == []
    assert [value for value in bad if rule.test(value)] == []


@pytest.mark.parametrize(
    ("rule", "words", "good", "bad"), RULES, ids=[words for _, words, _, _ in RULES]
)
def test_a_rule_answers_whatever_it_is_asked(rule: Rule, words: str, good: list, bad: list) -> None:
    for value in [*NONSENSE, [None, None], [[], []], ["a", ["b"]]]:
        assert rule.test(value) in (True, False)


@LAW
@given(
    st.floats(allow_nan=False), st.floats(-10, 10), st.floats(-10, 10), st.booleans(), st.booleans()
)
def test_a_number_lies_between_its_bounds(value, one, other, low_too: bool, high_too: bool) -> None:
    low, high = min(one, other), max(one, other)
    above = value >= low if low_too else value > low
    below = value <= high if high_too else value < high
    finite = math.isfinite(value)
    assert number(low, high, low_too, high_too).test(value) == (finite and above and below)


def test_a_value_that_is_not_allowed_is_named_with_what_is() -> None:
    check_value("isp.denoisers", 3, integer(0))
    with pytest.raises(UserError) as caught:
        check_value("isp.denoisers", -1, integer(0))
    assert str(caught.value) == ("isp.denoisers: -1 is not allowed; allowed: a whole number from 0")


def test_an_unknown_name_is_answered_by_the_nearest_or_by_all() -> None:
    known = ["look_ahead", "denoisers"]
    check_names(["denoisers"], known)
    for given_name, prefix, message in [
        ("lookahead", "isp.", "unknown key isp.lookahead; did you mean isp.look_ahead?"),
        ("lookahead", "", "unknown key lookahead; did you mean look_ahead?"),
        ("zzz", "isp.", "unknown key isp.zzz; known: look_ahead, denoisers"),
        (7, "", "unknown key 7; known: look_ahead, denoisers"),
    ]:
        with pytest.raises(UserError) as caught:
            check_names([given_name], known, prefix)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1e-4", 1e-4), ("2E3", 2000.0), ("1.5e-3", 1.5e-3), ("fast", "fast"), ("1", "1"), (3, 3)],
)
def test_what_yaml_takes_for_a_text_is_a_number(value: Any, expected: Any) -> None:
    assert as_number(value) == expected and type(as_number(value)) is type(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([0.1, 10.0], "[0.1,10]"),
        (2.0, "2"),
        (True, "true"),
        ("vote", "vote"),
        (2, "2"),
        (["a"], "[a]"),
    ],
)
def test_a_value_in_a_variant_is_short(value: Any, text: str) -> None:
    assert as_text(value) == text


# Fields


@dataclass(frozen=True, kw_only=True)
class Base:
    """Settings that two have in common."""

    rounds: int = setting("how many", integer(1), paper=10, quick=3)


@dataclass(frozen=True, kw_only=True)
class Own(Base):
    """Settings of one."""

    rate: float = setting("how fast", number(0, 1), default=ByFamily(0.1, 0.2), quick=0.5)
    shares: list[float] = setting("which", shares(), default=[0.5, 1.0])
    crop: float | None = setting("images", number(0, 1), families=("clip",), default=0.1)
    steps: int = setting("at most", integer(1), paper=8, quick=4, library=2)
    plain: int = 7  # no setting


def test_settings_are_the_fields_with_a_rule_those_of_bases_first() -> None:
    assert list(settings_of(Own)) == ["rounds", "rate", "shares", "crop", "steps"]
    assert settings_of(Own)["rounds"].metadata["doc"] == "how many"


def test_a_setting_said_again_stays_what_it_was_but_for_what_is_said() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other:
        steps: int = again(Own, "steps", paper=16)
        rounds: int = again(Base, "rounds", doc="how often", rule=integer(5))

    assert defaults_of(Other, "bert", "paper") == {"steps": 16, "rounds": 10}
    assert defaults_of(Other, "bert", "quick") == {"steps": 4, "rounds": 3}
    assert default_of(settings_of(Other)["steps"], "bert", LIBRARY) == 2
    with pytest.raises(
        UserError, match=r"rounds: 4 is not allowed; allowed: a whole number from 5"
    ):
        make(Other, {"rounds": 4}, "bert", "quick")
    assert settings_of(Other)["rounds"].metadata["doc"] == "how often"


def test_a_default_is_that_of_the_preset_and_the_family() -> None:
    shared = {"shares": [0.5, 1.0]}
    assert defaults_of(Own, "bert", "paper") == {
        "rounds": 10,
        "rate": 0.1,
        "crop": None,
        "steps": 8,
        **shared,
    }
    assert defaults_of(Own, "clip", "paper") == {
        "rounds": 10,
        "rate": 0.2,
        "crop": 0.1,
        "steps": 8,
        **shared,
    }
    assert defaults_of(Own, "clip", "quick") == {
        "rounds": 3,
        "rate": 0.5,
        "crop": 0.1,
        "steps": 4,
        **shared,
    }


def test_the_librarys_defaults_are_the_papers_where_it_has_none() -> None:
    found = {name: default_of(f, "bert", LIBRARY) for name, f in settings_of(Own).items()}
    assert found == {"rounds": 10, "rate": 0.1, "shares": [0.5, 1.0], "crop": None, "steps": 2}


def test_a_list_is_each_instances_own() -> None:
    one, other = Own(), Own()
    one.shares.append(0.0)
    assert other.shares == [0.5, 1.0]


def test_what_is_given_goes_before_the_defaults_and_none_is_none_given() -> None:
    made = make(Own, {"rate": "2e-1", "steps": None, "shares": [1]}, "clip", "quick")
    assert made == Own(rounds=3, rate=0.2, shares=[1], crop=0.1, steps=4)


@pytest.mark.parametrize(
    ("given_settings", "where", "message"),
    [
        ({"rate": 2}, "", "rate: 2 is not allowed; allowed: a number at least 0 and at most 1"),
        ({"steps": 0}, "snip", "snip.steps: 0 is not allowed; allowed: a whole number from 1"),
        ({"step": 1}, "snip", "unknown key snip.step; did you mean snip.steps?"),
        ({"plain": 1}, "", "unknown key plain; known: rounds, rate, shares, crop, steps"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(
    given_settings: dict, where: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        make(Own, given_settings, "bert", "quick", where)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", [Data, Training, Pretraining])
@pytest.mark.parametrize("family", ["bert", "clip"])
@pytest.mark.parametrize("preset", ["paper", "quick"])
def test_every_default_is_allowed_itself(kind: type, family: str, preset: str) -> None:
    known = settings_of(kind)
    for name, value in defaults_of(kind, family, preset).items():
        assert value is None or known[name].metadata["rule"].test(value), name


# Files


RECIPE = Recipe(epochs=1.5, learning_rate=1e-4, seed=3, metric="pearson", flip=True)
WHOLE: list[Stored] = [
    TrainStage(recipe=RECIPE, start="models/start", code="abc", engine="def"),
    CalibrateStage(recipe=RECIPE, start="x", schedule=Schedule(0.1, True, 0.3), rounds=4),
    WeakMasksStage(recipe=RECIPE, start="x", sparsity=0.5, isp={"subset": 0.1, "score": "fisher"}),
    SoupStage(start="x", sparsity=0.5, adjust=False, seed=1, isp={"combine": "vote"}),
    TicketStage(method="snip", settings={"batches": 4}, sparsity=0.5, recipe=RECIPE),
    TicketStage(method="x", settings={}, sparsity=0.5, head=Head(2, 7, ["a", "b"], ["{}"])),
    RetrainStage(recipe=RECIPE, start="x", ticket="y", isp_rounds=2),
    TablesStage(methods=["dense", "isp"], metric="accuracy"),
    ExportStage(dtype="bf16"),
    Pretraining(steps=10),
    Dataset(name="local:x", source="local", labels=["no", "yes"], train_rows=100),
    Head(classes=["a", "b"], templates=["a photo of {}."]),
    BaseModel("minilm", "bert", "packaged"),
]


@pytest.mark.parametrize("stage", WHOLE, ids=[type(stage).__name__ for stage in WHOLE])
def test_a_stage_file_comes_back_as_it_was(stage: Stored, tmp_path: Path) -> None:
    write_yaml(tmp_path / "stage.yaml", stage.contents())
    back = type(stage).read(tmp_path / "stage.yaml")
    assert back == stage
    for one in fields(stage):  # nested dataclasses, too, and no dictionaries in their place
        assert type(getattr(back, one.name)) is type(getattr(stage, one.name))


KINDS = {
    "data": Dataset,
    "base": BaseModel,
    "start": Head,
    "dense": TrainStage,
    "calibrate_0": CalibrateStage,
    "weak_masks_0": WeakMasksStage,
    "soup_0": SoupStage,
    "retrain_isp": RetrainStage,
    "ticket_isp_plus": TicketStage,
    "ticket_random_init": TicketStage,
    "retrain_random_init": RetrainStage,
    "evaluate_isp": EvaluateStage,
    "tables": TablesStage,
    "export": ExportStage,
}


@pytest.mark.parametrize("name", KINDS)
def test_what_the_plan_writes_its_stage_reads(name: str, tmp_path: Path) -> None:
    params = read_yaml(ROOT / "params.yaml")
    contents = plan({**params, "methods": ["isp_plus", "random_init"]})[name]
    write_yaml(tmp_path / "stage.yaml", contents)
    assert KINDS[name].read(tmp_path / "stage.yaml").contents() == contents


def test_the_digest_of_sources_need_not_be_a_field(tmp_path: Path) -> None:
    """The plan adds it to every file, so that DVC sees changed sources; few stages look at it."""
    write_yaml(tmp_path / "stage.yaml", {"dtype": "fp32", "code": "0123"})
    assert ExportStage.read(tmp_path / "stage.yaml") == ExportStage(dtype="fp32")
    write_yaml(tmp_path / "stage.yaml", {**WHOLE[0].contents(), "code": "0123"})
    assert TrainStage.read(tmp_path / "stage.yaml").code == "0123"


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("dtype: fp32\nmore: 1\n", "more"),
        ("{}\n", "dtype"),
        ("idle: true\n", "idle"),
        ("- 1\n", ""),
        ("null\n", ""),
        ("fp32\n", ""),
    ],
)
def test_a_damaged_stage_file_is_refused_in_one_line(
    tmp_path: Path, contents: str, reason: str
) -> None:
    path = tmp_path / "stage.yaml"
    path.write_text(contents)
    with pytest.raises(UserError) as caught:
        ExportStage.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not the settings of this stage (")
    assert reason in message and "\n" not in message


@pytest.mark.parametrize("recipe", [None, 3, "x", {"epochs": 1, "epoch": 2}, [1]])
def test_a_damaged_part_of_a_stage_file_is_refused_in_one_line(tmp_path: Path, recipe: Any) -> None:
    write_yaml(tmp_path / "stage.yaml", {**WHOLE[0].contents(), "recipe": recipe})
    with pytest.raises(
        UserError, match=r"stage\.yaml: not the settings of this stage \("
    ) as caught:
        TrainStage.read(tmp_path / "stage.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_stage_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.yaml").write_text("a: [1")
    for name in ("missing", "damaged"):
        with pytest.raises(UserError, match=rf"{name}\.yaml: cannot be read as YAML"):
            ExportStage.read(tmp_path / f"{name}.yaml")


def test_what_is_optional_and_nested_is_rebuilt_or_stays_none() -> None:
    @dataclass(frozen=True)
    class Outer(Stored):
        head: Head | None = None
        heads: list[int] = field(default_factory=list)

    assert Outer.of({"head": None}) == Outer()
    assert Outer.of({"head": {"seed": 3}, "heads": [1]}) == Outer(Head(seed=3), [1])
