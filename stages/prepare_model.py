"""Pre-trained base model (packaged, hub, local or clip-glyph) → models/base, without a head."""

from instant_soup.errors import UserError
from instant_soup.files import new_folder, read_yaml, run_stage, write_json
from instant_soup.models import base as models


def main() -> None:
    settings = read_yaml("models/plan/base.yaml")
    family = models.family_named(settings["family"])
    with new_folder("models/base") as folder:
        prunable = family.prepare_base(settings, folder)
        if not prunable:
            raise UserError(
                f"model: {settings['name']} has nothing prunable (no linear layers in blocks)"
            )
        write_json(folder / "prunable.json", {n: list(w.shape) for n, w in prunable.items()})
    weights = sum(w.numel() for w in prunable.values())
    print(f"{settings['name']}: {len(prunable)} prunable matrices, {weights:,} weights")


if __name__ == "__main__":
    run_stage(main)
