"""Tables × the base model's tokenizer → tensors, once for all training stages."""

from pathlib import Path

import pandas as pd

from instant_soup.batches import encode, save_split
from instant_soup.files import new_folder, read_json, read_yaml, run_stage, write_json


def main() -> None:
    settings = read_yaml("models/plan/encode.yaml")
    info = read_json("data/prepared/info.json")
    config = read_json("models/base/config.json")
    pad = config.get("pad_token_id") or 0
    positions = config.get("max_position_embeddings", 512)
    if "roberta" in config["model_type"]:
        positions -= pad + 1  # RoBERTa counts positions from behind the padding's
    max_length = min(settings["max_length"], positions)
    rows = {}
    with new_folder("data/encoded") as folder:
        for name in ("train", "validation", "test"):
            table = pd.read_parquet(Path("data/prepared") / f"{name}.parquet")
            texts = table[info["text"]].to_numpy().tolist()
            split = encode(
                "models/base/tokenizer.json",
                texts,
                table["label"].tolist(),
                max_length,
                pad,
            )
            save_split(folder / f"{name}.safetensors", split)
            rows[name] = len(split)
            print(
                f"{name}: {len(split)} rows, {split.lengths.float().mean():.1f} tokens on average"
            )
        outputs = max(1, len(info["labels"]))
        write_json(folder / "info.json", {**info, "outputs": outputs, "rows": rows})


if __name__ == "__main__":
    run_stage(main)
