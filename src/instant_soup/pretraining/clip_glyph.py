"""Pre-training of a small CLIP model on rendered characters and their captions.

A stand-in for the checkpoints that no package ships: open_clip's own model, tokenizer and loss on
the data of glyphs.py. Every batch is a function of seed and step, as in training/loop.py.
"""

import contextlib
import csv
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from instant_soup.errors import UserError
from instant_soup.files import new_file, new_folder, read_json, write_json
from instant_soup.models.clip import CONFIG, WEIGHTS, open_clip
from instant_soup.models.matrices import NEAR_ZERO, prunable
from instant_soup.pipeline.tracking import StageRun
from instant_soup.pretraining import glyphs
from instant_soup.training import checkpoints, loop
from instant_soup.training.schedule import learning_rate
from instant_soup.training.state import State, load_state, write_state

Curve = list[dict[str, Any]]

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
CLIP_NORM = 1.0
LARGEST_SCALE = math.log(100)  # of the logits, as in CLIP
ROWS, EVALUATIONS = 50, 5  # rows of the curve, and how many of them are validated
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
    """Share of freshly drawn images that the text tower's class vectors put into their class.

    All glyph classes compete; the prompt is "a photo of the …".
    """
    images, _, classes = glyphs.draw(atlas, VALIDATION_ROWS, key, where)
    model.eval()
    with torch.inference_mode():
        head = class_vectors(model, atlas, where)
        found = (model.encode_image(normalised(images)) @ head).argmax(1)
    model.train()
    return float((found.cpu() == classes).float().mean())


def warm_up_text_tower(model: Any, atlas: glyphs.Atlas, seed: int) -> None:
    """Teach the text tower which captions name the same character: some seconds, text alone.

    Contrastive learning begins slowly when neither tower tells anything apart; with class vectors
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


def near_zero(model: Any) -> float:
    """Share of the image tower's prunable weights with |w| < NEAR_ZERO (paper, section 9)."""
    weights = list(prunable(model.visual).values())
    return float(
        sum((w.abs() < NEAR_ZERO).sum() for w in weights) / sum(w.numel() for w in weights)
    )


def group_loss(loss_of: Any, image: torch.Tensor, text: torch.Tensor, scale: Any) -> torch.Tensor:
    """open_clip's loss within each group of rows, averaged (features in fp32)."""
    groups = [features.float().split(glyphs.GROUP) for features in (image, text)]
    return torch.stack([loss_of(i, t, scale) for i, t in zip(*groups, strict=True)]).mean()


def pretrain(model_config: dict, settings: dict, run: StageRun) -> tuple[State, Curve]:
    """Train a CLIP model from random weights; return its state and the curve.

    `settings`: objective (contrastive: images against the batch's captions; supervised: images
    against all classes, whose vectors stay as the text tower's warm-up left them), steps,
    batch_size, learning_rate (peak; linear warm-up, then linear to zero),
    weight_decay (of matrices), warmup (a share of the steps), seed, precision. The curve's rows:
    step, train_loss (mean since the row before), retrieval (share of the last batch's images
    whose nearest caption is of their class), near_zero (of the image tower) and at times
    validation (`zero_shot_accuracy`). Every two minutes, and when interrupted, a checkpoint is
    kept in DVC's temporary folder; an equal call goes on from there to the same result. UserError
    when the loss is no longer finite.
    """
    where = loop.device()
    precision = loop.resolve_precision(settings["precision"])
    total, rows, seed = settings["steps"], settings["batch_size"], settings["seed"]
    warmup = round(settings["warmup"] * total)
    atlas = glyphs.make_atlas()
    atlas.cells = atlas.cells.to(where)
    package = open_clip()
    tokenizer = package.get_tokenizer("", context_length=model_config["text_cfg"]["context_length"])
    loss_of = package.ClipLoss()

    model, state = build(model_config, seed), State({})
    curve: Curve = []
    losses: list[torch.Tensor] = []  # of the steps since the curve's last row
    checkpoint = checkpoints.folder([model_config, settings])
    if (checkpoint / "progress.json").exists():
        state = load_state(checkpoint)
        model.load_state_dict(state.weights)
        curve = read_json(checkpoint / "curve.json")
        losses = [torch.tensor(x, device=where) for x in read_json(checkpoint / "losses.json")]
        print(f"pre-training: continuing from the checkpoint at step {state.step}")
    model.to(where).train()
    if state.step == 0:
        warm_up_text_tower(model, atlas, seed)
    vectors = None
    if settings["objective"] == "supervised":
        vectors = class_vectors(model, atlas, where)
        text_tower = (p for n, p in model.named_parameters() if not n.startswith(IMAGE_SIDE))
        for parameter in text_tower:
            parameter.requires_grad_(False)
    optimizer = loop.make_optimizer(model, state, settings["weight_decay"])
    for row in curve:
        run.curve(**row)
    row_every = max(1, total // ROWS)
    validate_every = max(1, total // EVALUATIONS)
    last_saved = time.monotonic()
    # torch's fused attention is quick forward on a CPU, but slow backward.
    on_cpu = where.type == "cpu"
    attention = sdpa_kernel(SDPBackend.MATH) if on_cpu else contextlib.nullcontext()
    interval = 0.2 if sys.stderr.isatty() else 30.0
    with checkpoints.stop_between_steps() as stop_asked, attention:
        for step in tqdm(
            range(state.step, total), "pre-training", unit="step", mininterval=interval
        ):
            images, captions, classes = glyphs.draw(atlas, rows, (seed, step), where)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, settings["learning_rate"], warmup)
            with loop.autocast(precision, where):
                image, text, scale = model(normalised(images), tokenizer(captions).to(where))
            if vectors is None:
                loss = group_loss(loss_of, image, text, scale)
            else:
                logits = scale * image.float() @ vectors
                loss = functional.cross_entropy(logits, classes.to(where))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model.logit_scale.clamp_(max=LARGEST_SCALE)
            losses.append(loss.detach())
            done = step + 1
            validating = done % validate_every == 0 or done == total
            if validating or done % row_every == 0:
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise UserError(
                        f"pre-training: the loss is {mean} after {done} steps: "
                        "try a smaller learning rate"
                    )
                losses.clear()
                nearest = (image @ text.T).argmax(1).cpu()
                retrieval = float((classes[nearest] == classes).float().mean())
                key = (seed, total)  # the step after the last: never drawn in training
                score = zero_shot_accuracy(model, atlas, key, where) if validating else None
                values = (done, mean, retrieval, near_zero(model), score)
                curve.append(dict(zip(COLUMNS, values, strict=True)))
                run.curve(**curve[-1])
                run.live()
            if stop_asked.is_set() or time.monotonic() - last_saved > checkpoints.EVERY:
                with new_folder(checkpoint) as unfinished:
                    write_state(unfinished, loop.state_of(model, optimizer, done))
                    write_json(unfinished / "curve.json", curve)
                    write_json(unfinished / "losses.json", [float(x) for x in losses])
                last_saved = time.monotonic()
            if stop_asked.is_set():
                raise KeyboardInterrupt
    shutil.rmtree(checkpoint, ignore_errors=True)
    return loop.state_of(model, optimizer, total), curve


def save_model(folder: str | Path, model_config: dict, state: State, curve: Curve) -> None:
    """Write a folder that open_clip loads as `local-dir:FOLDER`, with the curve as CSV."""
    with new_folder(folder) as unfinished:
        config = {"model_cfg": model_config, "preprocess_cfg": PREPROCESS_CONFIG}
        write_json(unfinished / CONFIG, config)
        save_file(state.weights, unfinished / WEIGHTS, metadata={"format": "pt"})
        with new_file(unfinished / "curve.csv") as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(curve)
