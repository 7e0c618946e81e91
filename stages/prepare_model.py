"""Pre-trained base model (packaged, hub or local) → models/base, without a task head."""

from pathlib import Path

from safetensors.torch import save_file

from instant_soup import models
from instant_soup.files import UserError, new_folder, read_yaml, run_stage, write_json


def main() -> None:
    settings = read_yaml("models/plan/base.yaml")
    source = {
        "packaged": lambda: models.packaged_folder(settings["package"], settings["folder"]),
        "hub": lambda: settings["repo"],
        "local": lambda: Path(settings["path"]),
    }[settings["source"]]()
    model, new = models.load_pretrained(source, hub=settings["source"] == "hub")
    prunable = models.prunable(model)
    if not prunable:
        raise UserError(f"model: {source} has nothing prunable (no linear layers in blocks)")

    with new_folder("models/base") as folder:
        # The head is new for each task and seed; what the checkpoint does not hold stays out.
        head = new | {n for n in model.state_dict() if not n.startswith(model.base_model_prefix)}
        encoder = {n: w.contiguous() for n, w in model.state_dict().items() if n not in head}
        save_file(encoder, folder / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        models.save_tokenizer(source, folder, hub=settings["source"] == "hub")
        write_json(folder / "prunable.json", {n: list(w.shape) for n, w in prunable.items()})
    weights = sum(w.numel() for w in prunable.values())
    print(f"{settings['name']}: {len(prunable)} prunable matrices, {weights:,} weights")


if __name__ == "__main__":
    run_stage(main)
