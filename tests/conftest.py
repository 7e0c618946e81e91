"""Fixtures: tiny models and data sets, finished runs of them; and what all tests are spared."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import (
    BAD,
    FILLERS,
    GOOD,
    TINY_CLIP,
    finish_run,
    make_project,
    make_table,
    save_clip,
    work_in,
    write_pictures,
)
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.training import loop

declare_missing_operators()

# A nested DVC or a finished experiment must not lend its root or name to what a test starts.
for name in [n for n in os.environ if n.startswith("DVC_")]:
    del os.environ[name]

# A shell's background job ignores Ctrl-C, and so would what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take minutes come first, then the slow ones, so that no worker is left with one of
# them at the end.
LONG_FILES = ("test_pipeline", "test_grid", "test_ray_grid", "test_golden")
# These take more than some 15 s, on one core: -m "not slow" leaves them out.
SLOW_FILES = {
    *LONG_FILES,
    *("test_tracking", "test_warm_start", "test_jobs", "test_clip_pipeline"),
    *("test_training", "test_checkpoints", "test_data_parallel"),
    *("test_early_bird", "test_lottery", "test_dense_soups", "test_registry", "test_golden"),
    *("test_prune", "test_pruned", "test_pruner", "test_trainer_callback"),
    *("test_clip", "test_clip_glyph", "test_images", "test_export"),
    *("test_cli", "test_docs", "test_studies", "test_several_processes"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for files in (SLOW_FILES, LONG_FILES):
        items.sort(key=lambda item, files=files: item.path.stem not in files)
    for item in items:
        if item.path.stem in SLOW_FILES:
            item.add_marker("slow")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are quickest on one thread, above all beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_the_cpu() -> Iterator[None]:
    """For tests that compare bits: on the CPU wherever they run."""
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


@pytest.fixture
def enter_short(
    tiny_bert: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Makes a project whose trainings are an epoch, and goes into it; its store is its own."""

    def enter(name: str, methods: list[str], **training: Any) -> None:
        folder = tmp_path / name
        folder.mkdir()
        make_project(
            folder, tiny_bert, tiny_data, sparsity=0.6, methods=methods,
            training={"epochs": 1, "batch_size": 16, "precision": "fp32", "learning_rate": 5e-3,
                      **training},
            isp={"compression_rate": 0.3, "calibration": 0.1, "denoisers": 1, "look_ahead": 3},
            imp={"compression_rate": 0.6}, gmp={"prunes": 3, "cycles": 2},
        )  # fmt: skip
        work_in(folder, folder, monkeypatch)

    return enter


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
    data = write_pictures(tmp_path_factory.mktemp("pictures"))
    return finish_run(tmp_path_factory.mktemp("image-run"), tiny_clip, data, {}, {})


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two narrow blocks for 32 × 32 images, as an open_clip `local-dir:` folder."""
    return save_clip(tmp_path_factory.mktemp("tiny-clip"), TINY_CLIP)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-golden", action="store_true", help="write golden.json anew")
