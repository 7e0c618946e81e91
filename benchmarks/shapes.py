"""Models of well-known shapes with random weights: for speed and memory, never for results."""

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import prepare
from safetensors.torch import save_file

from instant_soup.models import clip, hugging_face
from instant_soup.models.known import MODELS, packaged_folder
from instant_soup.pipeline.plan import Params

MINILM = packaged_folder(MODELS["minilm"].package, MODELS["minilm"].folder)
SHAPES = ("MiniLM-L6", "BERT-base", "ViT-B/32")


def bert_folder(folder: Path, layers: int = 12, width: int = 768) -> Path:
    """A BERT checkpoint with the tokenizer of the packaged model; BERT-base by default."""
    hugging_face.transformers_auto()
    from transformers import BertConfig, BertModel

    hugging_face.load_tokenizer(MINILM).save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 4 * width,
    }
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes, num_attention_heads=max(1, width // 64)))
    model.save_pretrained(folder)
    return folder


def clip_folder(folder: Path, architecture: str = "ViT-B-32") -> Path:
    """An open_clip model in the layout of `local-dir:`."""
    package = clip.open_clip()
    torch.manual_seed(0)
    config = package.get_model_config(architecture)
    side = config["vision_cfg"].get("image_size", 224)
    seen = {"size": side, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    model = package.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / clip.CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": seen}))
    weights = {name: w.contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / clip.WEIGHTS, metadata={"format": "pt"})
    return folder


def long_texts(folder: Path, rows: int) -> Path:
    """A folder with texts of more than 128 tokens: words drawn at random, labels 0 and 1."""
    draw = random.Random(0)
    words = ["film", "plot", "is", "was", "and", "a", "very", "quite", "cast", "good", "bad", "the"]
    texts = [" ".join(draw.choices(words, k=160)) + f" {i}" for i in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    labels = [i % 2 for i in range(rows)]
    pd.DataFrame({"sentence": texts, "label": labels}).to_csv(folder / "train.csv", index=False)
    return folder


def project(folder: Path, shape: str, batches: int) -> Params:
    """A prepared folder with a model of this shape and some batches of full length; its parameters.

    Batches as in Table 1 of the paper: 32 texts of 128 tokens, or 128 images. The budget is one
    epoch, with one round to 20 % after one step, and one denoiser of one step.
    """
    images = shape == "ViT-B/32"
    batch_size = 128 if images else 32
    rows = {"train_rows": batches * batch_size, "validation_rows": 64, "test_rows": 64}
    changes: dict[str, Any] = {
        "sparsity": 0.2,
        "data": rows,
        "training": {"epochs": 1, "batch_size": batch_size},
        "isp": {"calibration": 1 / batches, "look_ahead": 1, "denoisers": 1, "subset": 1.0},
        "methods": ["one_shot", "snip", "grasp"],
        "criteria": {"batches": 1},
    }
    if images:
        model = clip_folder(folder / "model")
        changes |= {"dataset": "mnist-sample"}
    else:
        model = MINILM if shape == "MiniLM-L6" else bert_folder(folder / "model")
        texts = long_texts(folder / "texts", batches * batch_size + 128)
        changes |= {"dataset": f"local:{texts}"}
        rows["max_length"] = 128
        changes["training"] |= {"dropout": "model", "freeze_embeddings": False}
    return prepare(folder, model=f"local:{model}", **changes)
