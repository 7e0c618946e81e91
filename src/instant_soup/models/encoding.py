"""Rows as tensors, as a base folder's model takes them: texts tokenised, images resized."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from instant_soup.data.batches import Images, Texts, check_tokens, count_longer, encode
from instant_soup.data.images import decode
from instant_soup.files import read_json
from instant_soup.models import clip

if TYPE_CHECKING:
    import pandas as pd


def encode_images(base: Path, table: "pd.DataFrame", split: str) -> Images:
    """A split's images (`img`, encoded) at the model's size, as uint8."""
    side = clip.side(read_json(base / clip.CONFIG))
    pixels = decode(table["img"].tolist(), side, table["origin"], split)
    return Images(pixels, torch.tensor(table["label"].to_numpy()))


def encode_texts(base: Path, table: "pd.DataFrame", text: list[str], max_length: int) -> Texts:
    """A split's texts (one or two columns) as token ids, truncated to `max_length`."""
    config = read_json(base / "config.json")
    texts, labels = table[text].to_numpy().tolist(), table["label"].tolist()
    pad = config.get("pad_token_id") or 0
    encoded = encode(base / "tokenizer.json", texts, labels, max_length, pad)
    check_tokens(str(base), encoded, config.get("vocab_size"))
    return encoded


def count_truncated(
    base: Path, table: "pd.DataFrame", text: list[str], split: Texts, max_length: int
) -> int:
    """How many rows of an encoded split lost tokens to `max_length`: of those that fill it."""
    full = table.loc[(split.lengths == max_length).numpy(), text].to_numpy().tolist()
    return count_longer(base / "tokenizer.json", full, max_length) if full else 0


def longest(base: Path, max_length: int | None) -> int:
    """Tokens of a text: what settings and model allow."""
    most = int(read_json(base / "tokenizer_config.json")["model_max_length"])
    return most if max_length is None else min(max_length, most)
