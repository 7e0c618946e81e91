"""Rows → tensors, as a base folder's model takes them: texts tokenised, images resized."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from instant_soup.data.batches import Images, Texts, count_longer, encode
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
    pad = read_json(base / "config.json").get("pad_token_id") or 0
    texts, labels = table[text].to_numpy().tolist(), table["label"].tolist()
    return encode(base / "tokenizer.json", texts, labels, max_length, pad)


def count_truncated(
    base: Path, table: "pd.DataFrame", text: list[str], split: Texts, max_length: int
) -> int:
    """How many rows of an encoded split lost tokens to `max_length`: of those that fill it."""
    full = table.loc[(split.lengths == max_length).numpy(), text].to_numpy().tolist()
    return count_longer(base / "tokenizer.json", full, max_length) if full else 0


def longest(base: Path, max_length: int | None) -> int:
    """Tokens of a text: what settings and model allow."""
    config = read_json(base / "config.json")
    positions = config.get("max_position_embeddings", 512)
    if "roberta" in config["model_type"]:
        positions -= (config.get("pad_token_id") or 0) + 1  # it counts from behind the padding's
    return positions if max_length is None else min(max_length, positions)
