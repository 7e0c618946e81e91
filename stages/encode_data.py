"""Tables → tensors, once for all training stages: texts tokenised, images decoded and resized,
plain text packed into blocks."""

from pathlib import Path

import pandas as pd

from instant_soup.data.batches import save_split
from instant_soup.files import new_folder, read_json, write_json
from instant_soup.models.encoding import encode_split
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.stage_files import EncodeStage
from instant_soup.pipeline.workspace import BASE


def main() -> None:
    info = read_json("data/prepared/info.json")
    stage = EncodeStage.read("models/plan/encode.yaml")
    rows = {}
    with new_folder("data/encoded") as folder:
        for name in ("train", "validation", "test"):
            table = pd.read_parquet(Path("data/prepared") / f"{name}.parquet")
            split, said = encode_split(BASE, table, info["text"], stage.max_length, name)
            print(said)
            save_split(folder / f"{name}.safetensors", split)
            rows[name] = len(split)
        told = {"max_length": stage.max_length, "outputs": max(1, len(info["labels"]))}
        write_json(folder / "info.json", {**info, **told, "rows": rows})


if __name__ == "__main__":
    run_stage(main)
