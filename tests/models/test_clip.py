"""CLIP: what is prunable and really trains, the frozen head, and what is refused as pre-trained."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from helpers import ROOT, TINY_CLIP, save_clip
from instant_soup.config.sections import Recipe
from instant_soup.data import batches
from instant_soup.data.batches import Images
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json
from instant_soup.models import base as models
from instant_soup.models import clip, matrices
from instant_soup.models.base import Head
from instant_soup.models.known import MODELS, BaseModel, resolve_model
from instant_soup.sparsity import masks, scores
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

SOURCES = str(ROOT / "src")
HEAD = Head(classes=["zero", "one", "two"], templates=["a photo of {}.", "the digit {}"])
BLOCK = ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
RECIPE = Recipe(
    learning_rate=5e-3,
    weight_decay=0.1,
    batch_size=8,
    seed=3,
    precision="fp32",
    crop=0.125,
    flip=True,
)


def local(folder: Path) -> BaseModel:
    """A model in a folder."""
    return BaseModel("local", "clip", "local", path=str(folder))


@pytest.fixture
def base(tiny_clip: Path, tmp_path: Path) -> Path:
    """A base folder, as prepare_model writes it."""
    folder = tmp_path / "base"
    folder.mkdir()
    prunable = clip.prepare_base(local(tiny_clip), folder)
    write_json(folder / "prunable.json", {n: list(w.shape) for n, w in prunable.items()})
    return folder


@pytest.fixture
def data() -> Images:
    """Forty images of three classes: one bright channel each."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 3
    images = torch.randint(0, 120, (40, 3, 32, 32), generator=draws, dtype=torch.uint8)
    images[torch.arange(40), labels] += 100
    return Images(images, labels)


def train(base: Path, state: State, mask: Any, data: Images, last: int, **changes: Any):
    """Train a state up to a step of a 12-step run."""
    model = clip.classifier(base, state.weights)
    cost = Cost()
    recipe = replace(RECIPE, **changes)
    return loop.train(model, state, mask, data, recipe, cost, last=last, total=12, label="test")


# What is prunable


def test_prunable_are_the_four_matrices_of_every_visual_block(base: Path):
    expected = [f"visual.transformer.resblocks.{i}.{name}" for i in range(2) for name in BLOCK]
    shapes = read_json(base / "prunable.json")
    assert sorted(shapes) == sorted(expected)
    assert shapes["visual.transformer.resblocks.1.attn.in_proj_weight"] == [96, 32]
    assert sum(np.prod(shape) for shape in shapes.values()) == 2 * 12 * 32 * 32


def test_every_prunable_matrix_trains_and_its_pruned_entries_stay_zero(base: Path, data: Images):
    """The released research code fails this for out_proj, whose forward is never called."""
    before = clip.start_weights(base, HEAD)
    state = State({n: w.clone() for n, w in before.items()})
    mask = scores.magnitude({n: before[n] for n in read_json(base / "prunable.json")}, 0.6)
    state.prune(mask)
    after = train(base, state, mask, data, last=6).weights
    for name, kept in mask.items():
        assert torch.equal(after[name][~kept], torch.zeros(int((~kept).sum()))), name
        moved = (after[name] != before[name])[kept].float().mean()
        assert moved > 0.99, f"{name}: only {moved:.0%} of the kept weights moved"
    assert torch.equal(after["head"], before["head"])


def test_all_of_the_image_tower_trains_and_nothing_else(base: Path, data: Images):
    before = clip.start_weights(base, HEAD)
    state = State({n: w.clone() for n, w in before.items()})
    mask = masks.full({n: before[n] for n in read_json(base / "prunable.json")})
    after = train(base, state, mask, data, last=4).weights
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"head"}


def test_a_chain_of_trainings_equals_one_bit_for_bit(base: Path, data: Images):
    weights = clip.start_weights(base, HEAD)
    mask = masks.full({n: weights[n] for n in read_json(base / "prunable.json")})

    def copy() -> State:
        return State({n: w.clone() for n, w in weights.items()})

    whole = train(base, copy(), mask, data, last=12)
    chained = train(base, train(base, copy(), mask, data, last=5), mask, data, last=12)
    assert all(torch.equal(whole.weights[n], chained.weights[n]) for n in weights)
    plain = train(base, copy(), mask, data, last=12, crop=0.0, flip=False)
    assert not torch.equal(plain.weights["visual.proj"], whole.weights["visual.proj"])


# The classifier


def test_the_head_is_the_scaled_normalised_prompt_ensemble(base: Path):
    package = clip.open_clip()
    model = package.create_model(f"local-dir:{base}").eval()
    tokenizer = package.get_tokenizer(f"local-dir:{base}")
    rows = []
    with torch.no_grad():
        for name in HEAD.classes:
            texts = tokenizer([template.format(name) for template in HEAD.templates])
            vectors = functional.normalize(model.encode_text(texts), dim=-1)
            rows.append(functional.normalize(vectors.mean(0), dim=-1) * model.logit_scale.exp())
    expected = torch.stack(rows)
    torch.testing.assert_close(clip.zero_shot_head(base, HEAD.classes, HEAD.templates), expected)
    assert expected.norm(dim=1).tolist() == pytest.approx([1 / 0.07] * 3, rel=1e-4)


def test_logits_are_those_of_open_clips_own_forward_pass(base: Path, data: Images):
    package = clip.open_clip()
    model = package.create_model(f"local-dir:{base}").eval()
    weights = clip.start_weights(base, HEAD)
    classifier = clip.classifier(base, weights).eval()
    pixels = data.images[:5].float() / 255
    normal = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.25, 0.3]
    ).view(3, 1, 1)
    with torch.no_grad():
        features = functional.normalize(model.encode_image(normal), dim=-1)
        torch.testing.assert_close(
            classifier(data.images[:5]), features @ weights["head"].T, rtol=1e-4, atol=1e-4
        )


def test_foreign_weights_are_refused_and_the_difference_named(base: Path):
    weights = clip.start_weights(base, HEAD)
    del weights["visual.proj"]
    with pytest.raises(UserError, match=r"weights of another model.*visual\.proj"):
        clip.classifier(base, weights)


def test_models_for_oblong_images_are_refused(base: Path):
    config = read_json(base / clip.CONFIG)
    config["preprocess_cfg"]["size"] = [32, 48]
    with pytest.raises(UserError, match="32 × 48 pixels; only squares"):
        clip.side(config)


# Loading


def test_a_base_folder_is_what_open_clip_loads_as_it_is(base: Path, tiny_clip: Path):
    model = clip.open_clip().create_model(f"local-dir:{base}", require_pretrained=True)
    original = load_file(tiny_clip / clip.WEIGHTS)
    assert model.state_dict().keys() == original.keys()
    assert all(torch.equal(w, original[n]) for n, w in model.state_dict().items())
    assert list(model.visual.preprocess_cfg["mean"]) == [0.5, 0.4, 0.3]


def test_a_folder_without_all_weights_is_refused(tiny_clip: Path, tmp_path: Path):
    shutil.copytree(tiny_clip, tmp_path / "clip")
    weights = load_file(tiny_clip / clip.WEIGHTS)
    del weights["visual.proj"]
    save_file(weights, tmp_path / "clip" / clip.WEIGHTS)
    with pytest.raises(UserError, match=r"local-dir.* cannot be loaded by open_clip.*visual\.proj"):
        clip.load_pretrained(local(tmp_path / "clip"))
    (tmp_path / "clip" / clip.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"cannot be loaded by open_clip: Required pretrained"):
        clip.load_pretrained(local(tmp_path / "clip"))


def test_a_folder_that_asks_to_run_its_own_code_is_refused(tiny_clip: Path, tmp_path: Path):
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    config = read_json(folder / clip.CONFIG)
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    write_json(folder / clip.CONFIG, config)
    for load in (
        lambda: clip.load_pretrained(local(folder)),
        lambda: clip.zero_shot_head(folder, ["a", "b"], ["{}"]),
    ):
        with pytest.raises(UserError, match="trust_remote_code: true; allowed: false"):
            load()


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("model_cfg", {"vision_cfg": None}, "must have model_cfg, with vision_cfg"),
        ("model_cfg", {"text_cfg": 7}, "must have model_cfg, with vision_cfg"),
        ("preprocess_cfg", {"size": "big"}, "size 'big' is not allowed; allowed: pixels"),
        ("preprocess_cfg", {"size": [32, 48]}, "takes images of 32 × 48; allowed: squares"),
        ("preprocess_cfg", {"mean": 0.5}, "mean 0.5 is not allowed; allowed: three numbers"),
    ],
)
def test_a_damaged_configuration_is_refused_before_any_work(
    tiny_clip: Path, tmp_path: Path, part: str, change: dict, reason: str
):
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    config = read_json(folder / clip.CONFIG)
    config[part] |= change
    write_json(folder / clip.CONFIG, config)
    with pytest.raises(UserError, match=reason):
        resolve_model(f"local:{folder}")


@pytest.mark.parametrize("tag", ["nonsense", "weights.safetensors"])
def test_an_unknown_tag_is_refused(tag: str, tmp_path: Path, monkeypatch):
    """A file of this name, too, which open_clip would load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / tag).touch()
    with pytest.raises(
        UserError, match=rf"ViT-B-32/{tag} cannot be .*no such tag; allowed: openai"
    ):
        clip.load_pretrained(replace(MODELS["clip-vit-b32"], tag=tag))


def test_a_folder_does_not_stand_in_for_a_text_tower_of_the_hub(
    tiny_clip: Path, tmp_path: Path, monkeypatch
):
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    config = read_json(folder / clip.CONFIG)
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    write_json(folder / clip.CONFIG, config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roberta-base").mkdir()
    for load in (
        lambda: clip.load_pretrained(local(folder)),
        lambda: clip.zero_shot_head(folder, ["a", "b"], ["{}"]),
    ):
        with pytest.raises(UserError, match=r"hf_model_name: roberta-base is of the hub.*rename"):
            load()


def test_weights_of_another_type_are_trained_in_fp32_and_bad_ones_refused(
    tiny_clip: Path, tmp_path: Path
):
    shutil.copytree(tiny_clip, tmp_path / "clip")
    weights = {n: w.bfloat16() for n, w in load_file(tiny_clip / clip.WEIGHTS).items()}
    save_file(weights, tmp_path / "clip" / clip.WEIGHTS)
    (tmp_path / "base").mkdir()
    clip.prepare_base(local(tmp_path / "clip"), tmp_path / "base")
    kept = load_file(tmp_path / "base" / clip.WEIGHTS)
    assert {w.dtype for w in kept.values()} == {torch.float32}
    weights["visual.proj"][0, 0] = float("nan")
    save_file(weights, tmp_path / "clip" / clip.WEIGHTS)
    with pytest.raises(UserError, match=r"visual\.proj holds NaN or infinity; allowed: "):
        clip.prepare_base(local(tmp_path / "clip"), tmp_path / "base")


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from instant_soup.config.sections import Recipe
from instant_soup.data.batches import Images
from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.models import clip
from instant_soup.models.base import Head
from instant_soup.models.known import MODELS
from instant_soup.sparsity import scores
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

base = Path(sys.argv[1])
model = MODELS["clip-vit-b32"]
prunable = clip.prepare_base(model, base)
weights = clip.start_weights(base, Head(classes=["a", "b"], templates=["{}"]))
visual = clip.classifier(base, weights).visual
print(len(prunable), sum(w.numel() for w in prunable.values()))
print(type(visual.transformer.resblocks[0].mlp.gelu).__name__, visual.image_size)
seen = read_json(base / clip.CONFIG)["preprocess_cfg"]
print(*(round(x, 4) for x in [*seen["mean"], *seen["std"]]), seen["interpolation"])
state = State({name: w.clone() for name, w in weights.items()})
mask = scores.magnitude({name: weights[name] for name in prunable}, 0.5)
state.prune(mask)
data = Images(torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8), torch.tensor([0, 1] * 2))
recipe = Recipe(learning_rate=1e-4, weight_decay=0.0, batch_size=4, precision="fp32", crop=0.0)
network = clip.classifier(base, state.weights)
after = loop.train(network, state, mask, data, recipe, Cost(), last=1, total=None,
                   label="step").weights
print(all((after[n] != weights[n])[kept].any() and not after[n][~kept].any()
          for n, kept in mask.items()))
try:
    clip.load_pretrained(replace(model, architecture="ViT-B-16"))
except UserError as error:
    print(error)
"""


def test_vit_b32_comes_from_the_hubs_cache_with_its_own_activation(tmp_path: Path):
    """In the hub's real layout, with random weights; the real ones use QuickGELU."""
    repository = tmp_path / "hub/models--timm--vit_base_patch32_clip_224.openai"
    snapshot = repository / "snapshots" / "5f5e8a7d0f0a4c34bd2d3f8f5a7ad3dc1b1a0b3e"
    config = clip.open_clip().get_model_config("ViT-B-32")
    save_clip(snapshot, config)
    (snapshot / clip.WEIGHTS).rename(snapshot / "open_clip_model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(snapshot.name)
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS"))}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "base").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "base")],
        env={**environment, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    share, found, activation, seen, trained, refused = done.stdout.splitlines()
    assert share == "clip-vit-b32: 100.0% of the weights in its blocks are prunable"
    assert found == f"48 {12 * 12 * 768 * 768}"
    assert activation == "QuickGELU (224, 224)"
    assert seen == "0.4815 0.4578 0.4082 0.2686 0.2613 0.2758 bicubic"  # as OpenAI trained
    assert trained == "True"
    assert refused.startswith("model: ViT-B-16/openai cannot be loaded by open_clip")


def timm_clip(folder: Path, name: str, width: int, side: int, pool: str) -> Path:
    """A CLIP around a small image tower of timm's, with random weights."""
    vision = {"timm_model_name": name, "timm_proj": "", "image_size": side, "timm_pool": pool}
    config = {"embed_dim": width, "custom_text": True, "vision_cfg": vision,
              "text_cfg": TINY_CLIP["text_cfg"]}  # fmt: skip
    return save_clip(folder, config)


def test_a_tower_with_rotary_positions_is_built_whole(tmp_path: Path):
    """Its rotary table is a buffer that no checkpoint holds."""
    folder = timm_clip(tmp_path / "eva", "eva02_tiny_patch14_224", 192, 224, "token")
    (tmp_path / "base").mkdir()
    assert clip.prepare_base(local(folder), tmp_path / "base")
    weights = clip.start_weights(tmp_path / "base", HEAD)
    model = clip.classifier(tmp_path / "base", weights).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 224, 224, dtype=torch.uint8))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_a_tower_that_is_no_transformer_is_refused_when_it_is_loaded(tmp_path: Path):
    folder = timm_clip(tmp_path / "convnext", "test_convnext", 64, 64, "avg")
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="no position embeddings; allowed: transformers"):
        clip.prepare_base(local(folder), tmp_path / "base")


def test_convolutions_with_an_attention_pool_are_no_transformer(tmp_path: Path):
    """Their norms have running statistics, and the pool's positions are not a tower's."""
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TINY_CLIP["text_cfg"]}
    folder = save_clip(tmp_path / "resnet", config)
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="no position embeddings; allowed: transformers"):
        clip.prepare_base(local(folder), tmp_path / "base")


def test_a_tower_that_gives_its_patches_too_is_classified_by_the_image(tmp_path: Path):
    """As CoCa's does."""
    vision = {**TINY_CLIP["vision_cfg"], "output_tokens": True}
    folder = save_clip(tmp_path / "tokens", {**TINY_CLIP, "vision_cfg": vision})
    (tmp_path / "base").mkdir()
    clip.prepare_base(local(folder), tmp_path / "base")
    weights = clip.start_weights(tmp_path / "base", HEAD)
    model = clip.classifier(tmp_path / "base", weights).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        image, patches = model.visual(images * model.scale + model.shift)
        wanted = torch.nn.functional.normalize(image, dim=-1) @ model.head.T
        assert patches.ndim == 3 and torch.equal(model(images), wanted)


def test_classes_that_the_text_tower_cannot_tell_apart_are_refused(base: Path):
    long = "word " * 20
    with pytest.raises(UserError, match="text tower reads 16 tokens, and some classes are the sa"):
        clip.zero_shot_head(base, ["zero", "one"], [long + "{}"])


def test_a_timm_tower_has_its_prunable_blocks_found_by_structure(tmp_path: Path):
    folder = timm_clip(tmp_path / "timm", "test_vit", 64, 160, "token")
    (tmp_path / "base").mkdir()
    prunable = clip.prepare_base(local(folder), tmp_path / "base")
    kinds = {name.split(".", 4)[-1] for name in prunable}
    assert kinds == {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
    weights = clip.start_weights(tmp_path / "base", HEAD)
    model = clip.classifier(tmp_path / "base", weights).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 160, 160, dtype=torch.uint8))
    assert logits.shape == (2, 3) and logits.isfinite().all()


# Cost


def test_forward_flops_are_those_that_torch_counts(base: Path, data: Images):
    model = clip.classifier(base, clip.start_weights(base, HEAD))
    found = matrices.prunable(model)
    weights = sum(w.numel() for w in found.values())
    batch = data.rows(torch.arange(6))
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(batch["images"])
    in_prunable, others = models.forward_flops(model, found, batch)
    assert in_prunable == 2 * weights * 6 * 17
    assert in_prunable + others == counter.get_total_flops()


# Augmentation


def test_augmentation_shifts_and_mirrors_and_reflects_at_the_edges():
    draws = torch.Generator().manual_seed(0)
    ramp = torch.arange(8, dtype=torch.uint8)
    images = (10 * ramp[:, None] + ramp).expand(64, 3, 8, 8).contiguous()
    changed = batches.augment(images, 0.25, True, draws)
    mirrored = 0
    for image in changed:
        rows, columns = (image[0] // 10).long(), (image[0] % 10).long()
        assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
        down, across = rows[:, 0], columns[0]
        mirrored += bool(across[4] < across[3])
        across = across.flip(0) if across[4] < across[3] else across
        for positions in (down, across):
            shift = int(positions[3]) - 3
            asked = torch.arange(8) + shift
            assert -2 <= shift <= 2
            assert positions.tolist() == [abs(p) if p < 8 else 14 - p for p in asked.tolist()]
    assert 16 < mirrored < 48
    assert torch.equal(changed[:, 0], changed[:, 2])


def test_augmentation_that_is_off_changes_nothing(data: Images):
    assert torch.equal(batches.augment(data.images, 0.0, False, torch.Generator()), data.images)


def test_images_come_back_from_disk_as_images(data: Images, tmp_path: Path):
    batches.save_split(tmp_path / "split.safetensors", data)
    again = batches.load_split(tmp_path / "split.safetensors", torch.device("cpu"))
    assert isinstance(again, Images) and again.images.dtype == torch.uint8
    assert torch.equal(again.images, data.images) and torch.equal(again.labels, data.labels)
    kind, logits, labels = loop.predict(lambda_model(), again, "fp32")
    assert kind == "classification" and np.array_equal(labels, data.labels.numpy())
    assert np.array_equal(logits.argmax(1), data.labels.numpy())


def lambda_model() -> torch.nn.Module:
    """A module whose logits are each image's channel means."""

    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    return Means()
