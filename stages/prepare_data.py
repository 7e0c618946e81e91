"""Dataset (packaged, hub or local) → train, validation and test tables in one layout."""

from instant_soup.data.splits import read_splits
from instant_soup.data.tables import save_table
from instant_soup.files import new_folder, read_yaml, run_stage, write_json


def main() -> None:
    settings = read_yaml("models/plan/data.yaml")
    splits = read_splits(settings)
    image = bool(settings.get("image"))
    info = {
        "kind": settings["kind"],
        "labels": settings["labels"],
        "text": None if image else settings["text"],
        "image": "img" if image else None,
    }
    with new_folder("data/prepared") as folder:
        for name, table in splits.items():
            save_table(folder / f"{name}.parquet", table)
            print(f"{name}: {len(table)} rows")
        write_json(folder / "info.json", info)


if __name__ == "__main__":
    run_stage(main)
