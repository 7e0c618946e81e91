"""Base model + head → models/start, where every run begins.

A text classifier gets a new task head drawn from the seed; an image classifier the frozen
zero-shot head of its text tower.
"""

from dataclasses import replace

from instant_soup.models import base as models
from instant_soup.models.head import Head
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.workspace import BASE, START, outputs, prunable_shapes
from instant_soup.sparsity import masks
from instant_soup.training.state import State, save_state


def main() -> None:
    head = replace(Head.read("models/plan/start.yaml"), outputs=outputs())
    weights = models.family(BASE).start_weights(BASE, head)
    weights = {name: w.contiguous() for name, w in weights.items()}
    save_state(START / "state", State(weights))
    prunable = {name: weights[name] for name in prunable_shapes()}
    masks.save(START / "mask.safetensors", masks.full(prunable), method="dense")
    print(f"head: {', '.join(sorted(weights.keys() - models.base_weights(BASE).keys()))}")


if __name__ == "__main__":
    run_stage(main)
