"""Dataset (packaged, hub or local) → train, validation and test tables in one layout."""

from instant_soup.data.datasets import Dataset
from instant_soup.data.overview import overview
from instant_soup.data.splits import read_splits
from instant_soup.data.tables import save_table
from instant_soup.files import new_folder, write_json
from instant_soup.pipeline.processes import run_stage


def main() -> None:
    dataset = Dataset.read("models/plan/data.yaml")
    splits = read_splits(dataset)
    info = {
        "kind": dataset.kind,
        "labels": dataset.labels,
        "text": dataset.text or None,
        "image": "img" if dataset.image else None,
        "templates": dataset.templates,
    }
    with new_folder("data/prepared") as folder:
        for name, table in splits.items():
            save_table(folder / f"{name}.parquet", table)
        write_json(folder / "info.json", info)
    print(*overview(dataset, splits), sep="\n")


if __name__ == "__main__":
    run_stage(main)
