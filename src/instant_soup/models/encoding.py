"""Rows as tensors, as a base folder's model takes them: texts tokenised, images resized."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from instant_soup.data.batches import (
    Blocks,
    Images,
    Split,
    Texts,
    check_tokens,
    count_longer,
    encode,
    pack,
)
from instant_soup.data.images import decode
from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.models import causal, clip

if TYPE_CHECKING:
    import pandas as pd


def encode_split(
    base: Path, table: "pd.DataFrame", text: list[str] | None, max_length: int | None, name: str
) -> tuple[Split, str]:
    """A split's rows as a base folder's model takes them, and what there is to say of them.

    `text`: the columns of texts, none of images; `max_length`: of a text or block, in tokens, where
    the model takes as many.
    """
    if text is None:
        images = encode_images(base, table, name)
        return images, f"{name}: {len(images)} rows"
    tokens = longest(base, max_length)
    if (base / causal.CONFIG).exists():
        blocks = encode_blocks(base, table, text, tokens, name)
        return blocks, f"{name}: {len(blocks)} blocks of {tokens} tokens"
    texts = encode_texts(base, table, text, tokens)
    cut = count_truncated(base, table, text, texts, tokens)
    mean = texts.lengths.float().mean()
    return texts, (
        f"{name}: {len(texts)} rows, {mean:.1f} tokens on average, {cut} truncated to {tokens}"
    )


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
    if config.get("is_encoder_decoder"):
        check_ends(encoded, texts, config.get("eos_token_id"))
    return encoded


def check_ends(encoded: Texts, texts: list[list[str]], end: int | None) -> None:
    """Check that no text has more end tokens than others, as one that spells it has.

    BART and T5 classify by the last one, and refuse a batch whose texts have several numbers of
    them.

    Args:
        encoded: The rows.
        texts: The texts of each.
        end: The end token; None: there is none.

    Raises:
        UserError: If one has more; it shows the text.
    """
    inside = torch.arange(encoded.input_ids.shape[1]) < encoded.lengths[:, None]
    ends = ((encoded.input_ids == end) & inside).sum(1) if end is not None else encoded.lengths * 0
    for row in (ends > ends.min()).nonzero().flatten().tolist():
        raise UserError(
            f"dataset: the text {' | '.join(texts[row])[:60]!r} spells the model's end token; "
            "allowed: texts without it"
        )


def encode_blocks(
    base: Path,
    table: "pd.DataFrame",
    text: list[str],
    max_length: int,
    name: str,
    setting: str = "data.max_length",
) -> Blocks:
    """A split's texts, one after the other, as blocks of `max_length` tokens.

    UserError where they do not fill one, which names the split and the setting of the length.
    """
    config = read_json(base / "config.json")
    texts = table[text[0]].tolist()
    blocks = pack(base / "tokenizer.json", texts, max_length, setting, f"{name} text")
    check_tokens(str(base), blocks, config.get("vocab_size"))
    return blocks


def count_truncated(
    base: Path, table: "pd.DataFrame", text: list[str], split: Texts, max_length: int
) -> int:
    """How many rows of an encoded split lost tokens to `max_length`: of those that fill it."""
    full = table.loc[(split.lengths == max_length).numpy(), text].to_numpy().tolist()
    return count_longer(base / "tokenizer.json", full, max_length) if full else 0


def longest(base: Path, max_length: int | None) -> int:
    """Tokens of a text, or of a block of plain text: what settings and model allow."""
    if (base / causal.CONFIG).exists():
        most = causal.longest(base)
    else:
        most = int(read_json(base / "tokenizer_config.json")["model_max_length"])
    return most if max_length is None else min(max_length, most)
