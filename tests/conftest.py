"""Small real things for tests: a BERT of two narrow layers, and texts with a learnable label."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from instant_soup.models.torchvision_cpu import declare_missing_operators

declare_missing_operators()

# A nested DVC or a finished experiment must not lend its root or name to what a test starts.
for name in [n for n in os.environ if n.startswith("DVC_")]:
    del os.environ[name]

# A shell's background job ignores Ctrl-C, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take minutes come first, so that no worker is left with one of them at the end.
LONG_FILES = ("test_pipeline", "test_grid", "test_clip_pipeline", "test_ray_grid")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)


GOOD, BAD = ["fine", "great", "lovely", "bright"], ["poor", "awful", "dull", "weak"]
FILLERS = ["the", "film", "plot", "is", "was", "and", "a", "very", "quite", "cast"]


def make_table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Sentences of 3 to 12 words, label 1 when they hold more good words than bad."""
    import numpy as np

    draw = np.random.default_rng(seed)
    sentences, labels = [], []
    while len(sentences) < rows:
        label = int(draw.integers(2))
        words = list(draw.choice(FILLERS, draw.integers(2, 10)))
        words.insert(int(draw.integers(len(words) + 1)), str(draw.choice([BAD, GOOD][label])))
        sentences.append(" ".join(words) + f" {len(sentences)}")
        labels.append(label)
    return pd.DataFrame({"sentence": sentences, "label": labels})


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are quickest on one thread, above all beside other work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_the_cpu() -> Iterator[None]:
    """For tests that compare bits: on the CPU wherever they run."""
    import torch

    from instant_soup.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "device", lambda: torch.device("cpu"))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.parquet (200 rows) and validation.parquet (40 rows)."""
    folder = tmp_path_factory.mktemp("tiny-data")
    make_table(200).to_parquet(folder / "train.parquet")
    make_table(40, seed=1).to_parquet(folder / "validation.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BertModel checkpoint folder: 2 layers, width 32, with its fast tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLERS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


def new_classifier(folder: Path, outputs: int, seed: int) -> Any:
    """A text classifier of a folder's configuration, all of its weights drawn from the seed."""
    import torch

    from instant_soup.models import bert

    torch.manual_seed(seed)
    auto = bert.transformers_auto()
    config = bert.configuration(folder, outputs)
    return auto.AutoModelForSequenceClassification.from_config(config)


def random_texts() -> Any:
    """Forty rows of random tokens, as encoded; the label is in the second token."""
    import torch

    from instant_soup.data.batches import Texts

    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 13, (40,), generator=draws, dtype=torch.int32)
    ids = torch.randint(5, 20, (40, 12), generator=draws, dtype=torch.int32)
    ids[torch.arange(12) >= lengths[:, None]] = 0
    return Texts(ids, torch.zeros(40, 12, dtype=torch.uint8), lengths, (ids[:, 1] > 12).long())


def bert_settings(outputs: int, dropout: float | str = "model", frozen: bool = False) -> dict:
    """What bert.classifier wants to know beside the weights."""
    return {"outputs": outputs, "dropout": dropout, "freeze_embeddings": frozen}


def finish_run(folder: Path, model: Path, dataset: Path, data: dict, training: dict) -> Path:
    """A project folder with one finished method, one_shot, made by the stages' own scripts."""
    from test_early_bird import make_project, run_script

    enough = {"epochs": 8, "batch_size": 16, "precision": "fp32", "learning_rate": 5e-3}
    rows = {"sparsity": 0.6, "baselines": ["one_shot"]}
    make_project(folder, model, dataset, **rows, data=data, training={**enough, **training})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("find_ticket", "sparse_retrain", "evaluate"):
            run_script(stage, "--method", "one_shot")
    return folder


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """A project of the tiny BERT, pruned and fine-tuned on sentences with named classes."""
    data = tmp_path_factory.mktemp("sentences")
    for split, rows, seed in (("train", 200, 0), ("test", 60, 1)):
        table = make_table(rows, seed)
        table["label"] = table["label"].map({0: "bad", 1: "good"})
        table.to_csv(data / f"{split}.csv", index=False)
    folder = tmp_path_factory.mktemp("text-run")
    return finish_run(folder, tiny_bert, data, {"max_length": 12}, {"freeze_embeddings": False})


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A project of the tiny CLIP, pruned and fine-tuned on bright and dark oblong pictures."""
    import numpy as np
    from PIL import Image

    data, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, rows in (("train", 60), ("test", 20)):
        for name, level in (("bright", 160), ("dark", 60)):
            (data / split / name).mkdir(parents=True)
            for i in range(rows):
                pixels = draw.integers(level - 50, level + 50, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data / split / name / f"{i}.png")
    return finish_run(tmp_path_factory.mktemp("image-run"), tiny_clip, data, {}, {})


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_clip(folder: Path, config: dict, seed: int = 0, **preprocess: Any) -> Path:
    """Write an open_clip model with random weights in the layout of `local-dir:`."""
    import json

    import torch
    from safetensors.torch import save_file

    from instant_soup.models.clip import needs_optional, open_clip

    package = open_clip(needs_optional(config))
    torch.manual_seed(seed)
    kind = package.CustomTextCLIP if config.get("custom_text") else package.CLIP
    model = kind(**{k: v for k, v in config.items() if k != "custom_text"})
    side = config["vision_cfg"]["image_size"]
    seen = {"size": side, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], **preprocess}
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"model_cfg": config, "preprocess_cfg": seen}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    weights = {name: w.contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two narrow blocks for 32 × 32 images, as an open_clip `local-dir:` folder."""
    return save_clip(tmp_path_factory.mktemp("tiny-clip"), TINY_CLIP)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-golden", action="store_true", help="write tests/golden.json anew")
