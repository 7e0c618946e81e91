"""Tables → tensors, once for all training stages: texts tokenised, images decoded and resized."""

from pathlib import Path

import pandas as pd
import torch

from instant_soup import clip
from instant_soup.batches import Images, Texts, encode, save_split
from instant_soup.files import new_folder, read_json, read_yaml, run_stage, write_json
from instant_soup.images import decode

BASE = Path("models/base")


def main() -> None:
    info = read_json("data/prepared/info.json")
    rows = {}
    with new_folder("data/encoded") as folder:
        for name in ("train", "validation", "test"):
            table = pd.read_parquet(Path("data/prepared") / f"{name}.parquet")
            split = encode_images(table, name) if info["image"] else encode_texts(table, info)
            save_split(folder / f"{name}.safetensors", split)
            rows[name] = len(split)
        outputs = max(1, len(info["labels"]))
        write_json(folder / "info.json", {**info, "outputs": outputs, "rows": rows})


def encode_images(table: pd.DataFrame, name: str) -> Images:
    """Images at the model's size, as uint8."""
    side = clip.side(read_json(BASE / clip.CONFIG))
    print(f"{name}: {len(table)} images to {side} × {side} pixels")
    return Images(decode(table["img"], side, name), torch.tensor(table["label"].to_numpy()))


def encode_texts(table: pd.DataFrame, info: dict) -> Texts:
    """Texts as token ids, truncated to what settings and model allow."""
    settings = read_yaml("models/plan/encode.yaml")
    config = read_json(BASE / "config.json")
    pad = config.get("pad_token_id") or 0
    positions = config.get("max_position_embeddings", 512)
    if "roberta" in config["model_type"]:
        positions -= pad + 1  # RoBERTa counts positions from behind the padding's
    max_length = min(settings["max_length"], positions)
    texts = table[info["text"]].to_numpy().tolist()
    labels = table["label"].tolist()
    split = encode(BASE / "tokenizer.json", texts, labels, max_length, pad)
    print(f"{len(split)} rows, {split.lengths.float().mean():.1f} tokens on average")
    return split


if __name__ == "__main__":
    run_stage(main)
