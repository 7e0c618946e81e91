"""Pre-training of a small CLIP model on rendered characters and their captions.

It stands in for the checkpoints that no package ships: open_clip's own model, tokenizer and loss on
the data of glyphs.py. Every batch is a function of seed and step, as in training/loop.py.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from instant_soup.config.sections import Pretraining
from instant_soup.errors import UserError
from instant_soup.files import new_folder, write_json
from instant_soup.models.clip import CONFIG, WEIGHTS, open_clip
from instant_soup.pipeline.tracking import StageRun
from instant_soup.pretraining import glyphs
from instant_soup.pretraining.training import CLIP_NORM, Curve, near_zero, train, write_curve
from instant_soup.training import loop
from instant_soup.training.checkpoints import Store
from instant_soup.training.schedule import learning_rate
from instant_soup.training.state import State

Batch = tuple[torch.Tensor, list[str], torch.Tensor]  # images, captions, class numbers

MODEL_CONFIG = Path(__file__).with_name("clip_glyph.json")
PREPROCESS_CONFIG = {
    "size": glyphs.SIDE,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
POSITION_SCALE = 4.0
IMAGE_SIDE = ("visual.", "logit_scale")  # all other parameters are the text tower's
LARGEST_SCALE = math.log(100)  # of the logits, as in CLIP
VALIDATION_ROWS = 32 * glyphs.GROUP
TEXT_STEPS, TEXT_LEARNING_RATE, TEXT_SCALE = 60, 2e-3, 20.0
COLUMNS = ("step", "train_loss", "retrieval", "near_zero", "validation")


def build(model_config: dict, seed: int) -> Any:
    """A CLIP model of open_clip with random weights, which depend on `seed` alone."""
    package = open_clip()
    torch.manual_seed(seed)
    model = package.CLIP(**model_config)
    with torch.no_grad():
        # They begin far smaller than the patches' embeddings; to tell the places apart sooner
        # saves a third of the steps.
        model.visual.positional_embedding *= POSITION_SCALE
    return model


def normalised(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as the image tower takes them: mean and std of PREPROCESS_CONFIG."""
    return images / 127.5 - 1


def zero_shot_accuracy(
    model: Any, atlas: glyphs.Atlas, key: tuple[int, ...], where: torch.device
) -> float:
    """How many new images the text tower's class vectors put into their class.

    All glyph classes compete; the prompt is "a photo of the …".

    Args:
        model: The CLIP model.
        atlas: The glyphs.
        key: Numbers that seed the images.
        where: The device.

    Returns:
        A share from 0 to 1.
    """
    images, _, classes = glyphs.draw(atlas, VALIDATION_ROWS, key, where)
    model.eval()
    # As in training, so that fused attention does not come in between on a CPU.
    unfused = sdpa_kernel(SDPBackend.MATH) if where.type == "cpu" else contextlib.nullcontext()
    with torch.inference_mode(), unfused:
        head = class_vectors(model, atlas, where)
        found = (model.encode_image(normalised(images)) @ head).argmax(1)
    model.train()
    return float((found.cpu() == classes).float().mean())


def warm_up_text_tower(model: Any, atlas: glyphs.Atlas, seed: int) -> None:
    """Teach the text tower which captions name the same character: some seconds, text alone.

    Contrastive learning begins slowly if neither tower tells anything apart. With class vectors
    that are apart already, the image tower learns as if from labels.
    """
    package = open_clip()
    tokenizer = package.get_tokenizer("", context_length=model.context_length)
    loss_of, scale = package.ClipLoss(), torch.tensor(TEXT_SCALE)
    text = [p for name, p in model.named_parameters() if not name.startswith(IMAGE_SIDE)]
    optimizer = torch.optim.AdamW(text, lr=0.0, weight_decay=0.0, fused=True)
    where = text[0].device
    for step in range(TEXT_STEPS):
        pair = glyphs.caption_pairs(atlas, (seed, step, 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, TEXT_STEPS, TEXT_LEARNING_RATE, TEXT_STEPS // 6)
        one, other = (
            model.encode_text(tokenizer(captions).to(where), normalize=True) for captions in pair
        )
        loss_of(one, other, scale.to(where)).backward()
        nn.utils.clip_grad_norm_(text, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()


def class_vectors(model: Any, atlas: glyphs.Atlas, where: torch.device) -> torch.Tensor:
    """The text tower's normalised vectors of all classes: embedding × classes."""
    package = open_clip()
    tokenizer = package.get_tokenizer("", context_length=model.context_length)
    names = [own[0] for own in atlas.names]
    return package.build_zero_shot_classifier(
        model, tokenizer, names, glyphs.TEMPLATES[:1], 100, where
    ).detach()


def group_loss(loss_of: Any, image: torch.Tensor, text: torch.Tensor, scale: Any) -> torch.Tensor:
    """open_clip's loss within each group of rows, averaged (features in fp32)."""
    groups = [features.float().split(glyphs.GROUP) for features in (image, text)]
    return torch.stack([loss_of(i, t, scale) for i, t in zip(*groups, strict=True)]).mean()


def pretrain(
    model_config: dict[str, Any], settings: Pretraining, run: StageRun, store: Store
) -> tuple[State, Curve]:
    """Train a CLIP model from random weights.

    An equal call goes on from an interrupted one's checkpoint, to the same result.

    Args:
        model_config: Its configuration, as in open_clip_config.json.
        settings: The section `pretraining`. `contrastive`: images against the batch's captions.
            `supervised`: images against all classes, whose vectors stay as the text tower's warm-up
            left them.
        run: The stage's record.
        store: Where checkpoints are, until the stage's output is in place and it is told to forget.

    Returns:
        The state and the curve. A row of the curve has step, train_loss (mean since the last row),
        retrieval (share of the last batch's images whose nearest caption is of their class),
        near_zero (of the image tower) and at times validation (`zero_shot_accuracy`).

    Raises:
        UserError: If the loss is no longer finite.
    """
    where, total, seed = loop.device(), settings.steps, settings.seed
    atlas = glyphs.make_atlas()
    atlas.cells = atlas.cells.to(where)
    package = open_clip()
    tokenizer = package.get_tokenizer("", context_length=model_config["text_cfg"]["context_length"])
    loss_of = package.ClipLoss()
    model = build(model_config, seed)
    vectors: torch.Tensor | None = None  # of the classes, where they are what images are held to
    seen: dict[str, torch.Tensor] = {}  # of the last batch

    def batches(first: int) -> Iterator[tuple[int, Batch]]:
        for step in range(first, total):
            yield step, glyphs.draw(atlas, settings.batch_size, (seed, step), where)

    def loss(batch: Batch) -> torch.Tensor:
        images, captions, classes = batch
        image, text, scale = model(normalised(images), tokenizer(captions).to(where))
        seen.update(image=image.detach(), text=text.detach(), classes=classes)
        with torch.autocast(where.type, enabled=False):
            if vectors is None:
                return group_loss(loss_of, image, text, scale)
            return functional.cross_entropy(scale * image.float() @ vectors, classes.to(where))

    def row(step: int, mean: float, validating: bool) -> dict[str, Any]:
        if not math.isfinite(mean):
            raise UserError(
                f"pre-training: the loss is {mean} after {step} steps: try a smaller learning rate"
            )
        nearest = (seen["image"] @ seen["text"].T).argmax(1).cpu()
        retrieval = float((seen["classes"][nearest] == seen["classes"]).float().mean())
        key = (seed, total)  # the step after the last: never drawn in training
        score = zero_shot_accuracy(model, atlas, key, where) if validating else None
        return dict(
            zip(COLUMNS, (step, mean, retrieval, near_zero(model.visual), score), strict=True)
        )

    def begin(step: int) -> None:
        nonlocal vectors
        if step == 0:
            warm_up_text_tower(model, atlas, seed)
        if settings.objective == "supervised":
            vectors = class_vectors(model, atlas, where)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(IMAGE_SIDE))

    def tidy() -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(max=LARGEST_SCALE)

    return train(
        model, ("pretraining", model_config), settings, run, store,
        batches=batches, loss=loss, row=row, begin=begin, tidy=tidy,
    )  # fmt: skip


def save_model(folder: str | Path, model_config: dict, state: State, curve: Curve) -> None:
    """Write a folder that open_clip loads as `local-dir:FOLDER`, with the curve as CSV."""
    with new_folder(folder) as unfinished:
        config = {"model_cfg": model_config, "preprocess_cfg": PREPROCESS_CONFIG}
        write_json(unfinished / CONFIG, config)
        save_file(state.weights, unfinished / WEIGHTS, metadata={"format": "pt"})
        write_curve(unfinished, COLUMNS, curve)
