"""Contrastive pre-training: resume equals one run, it learns, and open_clip loads the result."""

import csv
import math
import runpy
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from helpers import ROOT, TINY_CLIP
from instant_soup.config.sections import Pretraining
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json, write_yaml
from instant_soup.models.clip import open_clip
from instant_soup.models.matrices import prunable
from instant_soup.pretraining import clip_glyph, glyphs, training
from instant_soup.pretraining.glyphs import Atlas
from instant_soup.pretraining.training import Curve
from instant_soup.training import loop
from instant_soup.training.checkpoints import pipeline_store
from instant_soup.training.state import State

STAGE = ROOT / "stages/pretrain_clip.py"
CPU = torch.device("cpu")
CONFIG = {**TINY_CLIP, "text_cfg": {**TINY_CLIP["text_cfg"], "context_length": 20}}
SETTINGS = Pretraining(
    objective="contrastive",
    steps=6,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=0.1,
    warmup=0.2,
    seed=3,
    precision="fp32",
)

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


class Rows:
    """A tracked run that keeps the steps of the curve's rows."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def curve(self, step: int, **metrics: Any) -> None:
        self.steps.append(step)

    def live(self) -> None:
        pass


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return glyphs.make_atlas()


@pytest.fixture(autouse=True)
def small(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder of its own, one atlas for all tests, a short text warm-up; on the CPU."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs, "make_atlas", lambda: Atlas(**vars(atlas)))
    monkeypatch.setattr(clip_glyph, "TEXT_STEPS", 2)
    monkeypatch.setattr(clip_glyph, "VALIDATION_ROWS", 2 * glyphs.GROUP)


def pretrain(rows: Rows | None = None, **changes: Any) -> tuple[State, Curve]:
    store, settings = pipeline_store(), replace(SETTINGS, **changes)
    found = clip_glyph.pretrain(CONFIG, settings, rows or Rows(), store)  # type: ignore[arg-type]
    store.forget()
    return found


def interrupt_pretraining(at: int, run: Callable[[], Any] = pretrain) -> None:
    """Ctrl-C while step `at` (counted from 1) draws its batch."""
    draw = glyphs.draw

    def drawn(atlas: Atlas, rows: int, key: tuple[int, ...], where: torch.device) -> Any:
        if key == (SETTINGS.seed, at - 1):
            signal.raise_signal(signal.SIGINT)
        return draw(atlas, rows, key, where)

    interrupted = pytest.raises((KeyboardInterrupt, SystemExit))
    with pytest.MonkeyPatch.context() as patch, interrupted:
        patch.setattr(glyphs, "draw", drawn)
        run()


def same(one: State, other: State) -> bool:
    pairs = zip(
        (one.weights, one.first_moments, one.second_moments),
        (other.weights, other.first_moments, other.second_moments),
        strict=True,
    )
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def checkpoints(folder: Path) -> list[Path]:
    return list((folder / ".dvc/tmp/instant-soup/store").glob("*/progress.json"))


def test_interrupted_training_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A row every third step: the fourth step's loss must outlive the stop.
    monkeypatch.setattr(training, "ROWS", 2)
    monkeypatch.setattr(training, "EVALUATIONS", 1)
    whole, curve = pretrain()
    interrupt_pretraining(at=4)
    assert [read_json(file)["step"] for file in checkpoints(tmp_path)] == [4]
    rows = Rows()
    resumed, resumed_curve = pretrain(rows)
    assert same(resumed, whole) and resumed.step == SETTINGS.steps
    assert resumed_curve == curve
    assert rows.steps == [row["step"] for row in curve] == [3, 6]
    assert checkpoints(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_checkpoint_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    whole, _ = pretrain(seed=4)
    interrupt_pretraining(at=4)
    other, _ = pretrain(seed=4)
    assert same(other, whole)
    assert len(checkpoints(tmp_path)) == 1


@pytest.mark.parametrize(
    ("where", "name", "other"),
    [
        (training, "processor", lambda: "another one"),
        (loop, "resolve_precision", lambda *_: "bf16"),
    ],
    ids=["processor", "precision"],
)
def test_a_checkpoint_of_another_machine_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, other: Any
) -> None:
    interrupt_pretraining(at=4)
    monkeypatch.setattr(where, name, other)
    rows = Rows()
    pretrain(rows)
    assert len(checkpoints(tmp_path)) == 1  # is still the other's
    assert rows.steps[0] == 1


def test_weights_depend_on_the_seed() -> None:
    one, again, other = (clip_glyph.build(CONFIG, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert not torch.equal(one[name], other[name])


def test_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch by heart; validation has the same images, but prompts that are no captions."""
    draw = glyphs.draw
    monkeypatch.setattr(glyphs, "draw", lambda a, rows, _, where: draw(a, rows, (0, 0), where))
    _, curve = pretrain(steps=60, learning_rate=5e-3)
    assert curve[0]["train_loss"] > math.log(glyphs.GROUP)  # no better than guessing
    assert curve[-1]["train_loss"] < 0.5 and curve[-1]["retrieval"] > 0.7
    measured = [row["validation"] for row in curve if row["validation"] is not None]
    assert len(measured) == training.EVALUATIONS
    assert measured[-1] == curve[-1]["validation"] > 10 / len(glyphs.CHARACTERS)


def test_supervised_training_learns_and_leaves_the_text_tower_alone(tmp_path: Path) -> None:
    short, _ = pretrain(objective="supervised", steps=1)
    settings = {"objective": "supervised", "steps": 30, "learning_rate": 3e-3}
    state, curve = pretrain(**settings)
    assert curve[-1]["train_loss"] < 0.9 * curve[0]["train_loss"]
    text = [n for n in state.weights if not n.startswith(clip_glyph.IMAGE_SIDE)]
    assert text and all(torch.equal(state.weights[n], short.weights[n]) for n in text)
    assert not torch.equal(state.weights["visual.proj"], short.weights["visual.proj"])


def test_the_share_of_weights_near_zero_is_counted() -> None:
    model = clip_glyph.build(CONFIG, 0)
    weights = prunable(model.visual)
    with torch.no_grad():
        for w in weights.values():
            w.fill_(0.5)
        next(iter(weights.values())).fill_(-0.001)
    small = next(iter(weights.values())).numel()
    share = small / sum(w.numel() for w in weights.values())
    assert training.near_zero(model.visual) == pytest.approx(share)


def test_text_warm_up_tells_the_classes_apart(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_glyph, "TEXT_STEPS", 40)
    model = clip_glyph.build(CONFIG, seed=0)
    tokenizer = open_clip().get_tokenizer("", context_length=20)
    before = {name: w.clone() for name, w in model.state_dict().items()}

    def matched() -> float:
        """Share of captions whose most similar counterpart is of their class."""
        with torch.inference_mode():
            one, other = (
                model.encode_text(tokenizer(captions), normalize=True)
                for captions in glyphs.caption_pairs(atlas, (9, 9))
            )
        return float(((one @ other.T).argmax(1) == torch.arange(len(one))).float().mean())

    untrained = matched()
    clip_glyph.warm_up_text_tower(model, atlas, seed=0)
    assert matched() > untrained + 0.2
    untouched = [name for name in before if name.startswith(("visual.", "logit_scale"))]
    assert untouched and all(torch.equal(before[n], model.state_dict()[n]) for n in untouched)


def test_loss_compares_within_groups_only() -> None:
    draws = torch.Generator().manual_seed(0)
    image, text = (
        functional.normalize(torch.randn(2 * glyphs.GROUP, 8, generator=draws), dim=-1)
        for _ in range(2)
    )
    scale = torch.tensor(5.0)

    def reference(i: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        logits, right = scale * i @ t.T, torch.arange(len(i))
        both = (functional.cross_entropy(m, right) for m in (logits, logits.T))
        return sum(both) / 2  # type: ignore

    found = clip_glyph.group_loss(open_clip().ClipLoss(), image, text, scale)
    halves = [reference(i, t) for i, t in zip(image.chunk(2), text.chunk(2), strict=True)]
    torch.testing.assert_close(found, sum(halves) / 2)
    assert not torch.isclose(found, reference(image, text))


def test_logit_scale_stays_below_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_glyph, "LARGEST_SCALE", 2.0)
    assert clip_glyph.build(CONFIG, 0).logit_scale.item() > 2.0
    state, _ = pretrain(steps=2)
    assert float(state.weights["logit_scale"]) <= 2.0


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(UserError, match="try a smaller learning rate"):
        pretrain(learning_rate=1e30)


def test_zero_shot_accuracy_is_the_share_of_right_answers(
    atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that sees the answer is always right, one that looks elsewhere never."""
    model = clip_glyph.build(CONFIG, seed=0)
    package, key = open_clip(), (1, 2)
    _, _, classes = glyphs.draw(atlas, clip_glyph.VALIDATION_ROWS, key, CPU)
    head = torch.eye(len(atlas.names))
    monkeypatch.setattr(package, "build_zero_shot_classifier", lambda *_, **__: head)
    for answers, score in ((classes, 1.0), ((classes + 1) % len(head), 0.0)):
        monkeypatch.setattr(model, "encode_image", lambda _, a=answers: head[a])
        assert clip_glyph.zero_shot_accuracy(model, atlas, key, CPU) == score
    assert model.training


def test_open_clip_loads_the_folder_as_it_is(tmp_path: Path) -> None:
    state, curve = pretrain()
    clip_glyph.save_model(tmp_path / "out", CONFIG, state, curve)
    package, where = open_clip(), f"local-dir:{tmp_path / 'out'}"
    model, _, preprocess = package.create_model_and_transforms(where)
    loaded = model.state_dict()
    assert loaded.keys() == state.weights.keys()
    assert all(torch.equal(loaded[name], w) for name, w in state.weights.items())
    assert package.get_tokenizer(where)(["the digit seven."]).shape == (1, 20)

    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB")
    seen = torch.from_numpy(np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).copy())
    torch.testing.assert_close(preprocess(image), clip_glyph.normalised(seen.permute(2, 0, 1)))

    with open(tmp_path / "out/curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [row["train_loss"] for row in curve]


def run_the_stage(settings: dict) -> None:
    write_yaml("models/plan/pretrain_clip.yaml", settings)
    runpy.run_path(str(STAGE), run_name="__main__")


def test_an_idle_stage_leaves_a_note() -> None:
    run_the_stage({"idle": True})
    assert [path.name for path in Path("models/pretrained").iterdir()] == ["idle.txt"]


def test_the_stage_writes_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "small.json", CONFIG)
    monkeypatch.setattr(clip_glyph, "MODEL_CONFIG", tmp_path / "small.json")
    run_the_stage(replace(SETTINGS, steps=2).contents())
    files = sorted(path.name for path in Path("models/pretrained").iterdir())
    assert files == ["curve.csv", "open_clip_config.json", "open_clip_model.safetensors"]
    expected, _ = pretrain(steps=2)
    model = open_clip().create_model("local-dir:models/pretrained")
    assert torch.equal(model.state_dict()["visual.proj"], expected.weights["visual.proj"])


def test_a_checkpoint_of_other_code_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "small.json", CONFIG)
    monkeypatch.setattr(clip_glyph, "MODEL_CONFIG", tmp_path / "small.json")
    before, after = ({**SETTINGS.contents(), "code": code} for code in "12")
    interrupt_pretraining(4, lambda: run_the_stage(before))
    run_the_stage(after)
    assert "continuing" not in capsys.readouterr().out and len(checkpoints(tmp_path)) == 1
    run_the_stage(before)
    assert "continuing from the checkpoint at step 4" in capsys.readouterr().out


def test_a_finished_pre_training_stays_until_its_model_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "small.json", CONFIG)
    monkeypatch.setattr(clip_glyph, "MODEL_CONFIG", tmp_path / "small.json")

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(clip_glyph, "save_model", full)
        run_the_stage(SETTINGS.contents())
    assert len(checkpoints(tmp_path)) == 1
    monkeypatch.setattr(glyphs, "draw", never)
    run_the_stage(SETTINGS.contents())
    assert Path("models/pretrained/curve.csv").exists() and checkpoints(tmp_path) == []


def test_the_model_that_comes_with_the_package_fits_its_data() -> None:
    config = read_json(clip_glyph.MODEL_CONFIG)
    model = clip_glyph.build(config, seed=0)
    assert config["vision_cfg"]["image_size"] == glyphs.SIDE
    blocks = model.visual.transformer.resblocks
    matrices = sum(p.numel() for p in blocks.parameters() if p.ndim == 2)
    assert 0.8e6 <= matrices <= 3e6
    longest = max((name for both in glyphs.CHARACTERS.values() for name in both), key=len)
    caption = f"a photo of the bold purple {longest} on a purple background."
    tokens = open_clip().get_tokenizer("", context_length=77)([caption])
    assert int((tokens != 0).sum()) <= config["text_cfg"]["context_length"]
