"""Base model + a new task head drawn from the seed → models/start, where every run begins."""

from pathlib import Path

from safetensors.torch import load_file

from instant_soup import masks, models
from instant_soup.files import read_json, read_yaml, run_stage
from instant_soup.training import State, save_state


def main() -> None:
    seed = read_yaml("models/plan/start.yaml")["seed"]
    outputs = read_json("data/encoded/info.json")["outputs"]
    base = Path("models/base")
    weights = models.new_classifier(base, outputs, seed).state_dict()
    pretrained = load_file(base / "model.safetensors")
    head = sorted(weights.keys() - pretrained.keys())
    weights = {name: w.contiguous() for name, w in {**weights, **pretrained}.items()}
    save_state("models/start/state", State(weights))
    prunable = {name: weights[name] for name in read_json(base / "prunable.json")}
    masks.save("models/start/mask.safetensors", masks.full(prunable), method="dense", seed=seed)
    print(f"new from seed {seed}: {', '.join(head)}")


if __name__ == "__main__":
    run_stage(main)
