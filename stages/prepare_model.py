"""Pre-trained base model (packaged, hub, local, or our own) → models/base, without a new head."""

from instant_soup.files import new_folder, write_json
from instant_soup.models import base as models
from instant_soup.models.known import BaseModel
from instant_soup.pipeline.processes import run_stage


def main() -> None:
    model = BaseModel.read("models/plan/base.yaml")
    with new_folder("models/base") as folder:
        prunable = models.family_named(model.family).prepare_base(model, folder)
        write_json(folder / "prunable.json", {n: list(w.shape) for n, w in prunable.items()})
    weights = sum(w.numel() for w in prunable.values())
    print(f"{model.name}: {len(prunable)} prunable matrices, {weights:,} weights")


if __name__ == "__main__":
    run_stage(main)
