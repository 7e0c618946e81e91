"""Small real things for tests: a BERT of two narrow layers, and texts with a learnable label."""

import os
from pathlib import Path

import pandas as pd
import pytest

# A nested DVC or a finished experiment must not lend its root or name to what a test starts.
for name in [n for n in os.environ if n.startswith("DVC_")]:
    del os.environ[name]

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
