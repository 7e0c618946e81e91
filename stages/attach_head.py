"""Base model + head → models/start, where every run begins.

A text classifier gets a new task head drawn from the seed; an image classifier the frozen
zero-shot head of its text tower.
"""

from pathlib import Path

from instant_soup.files import read_json, read_yaml, run_stage
from instant_soup.models import base as models
from instant_soup.sparsity import masks
from instant_soup.training.state import State, save_state


def main() -> None:
    settings = read_yaml("models/plan/start.yaml")
    settings["outputs"] = read_json("data/encoded/info.json")["outputs"]
    base = Path("models/base")
    weights = models.family(base).start_weights(base, settings)
    weights = {name: w.contiguous() for name, w in weights.items()}
    save_state("models/start/state", State(weights))
    prunable = {name: weights[name] for name in read_json(base / "prunable.json")}
    masks.save("models/start/mask.safetensors", masks.full(prunable), method="dense")
    head = sorted(weights.keys() - models.base_weights(base).keys())
    print(f"head: {', '.join(head)}")


if __name__ == "__main__":
    run_stage(main)
