"""Does glyph pre-training help? clip-glyph's fine-tuning beside that of a random image tower.

Both have the same architecture, the same frozen head out of the pre-trained text tower, the same
budget and data order; one starts from the pre-trained image tower, the other from open_clip's own
random initialisation (pre-training itself starts from one with position embeddings four times as
large). Needs the data, base model and start of a pipeline run with clip-glyph;
prints validation accuracy, the test split is not touched.

    python benchmarks/glyph_transfer.py --seeds 3
"""

import argparse
import statistics

import yaml

from instant_soup.data.batches import load_split
from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.models import clip
from instant_soup.pipeline import main_network
from instant_soup.pipeline.plan import check
from instant_soup.sparsity import masks
from instant_soup.training import loop, metrics
from instant_soup.training.cost import Cost


def final_score(settings: dict, seed: int, pretrained: bool) -> float:
    """Validation accuracy (%) after the whole budget, dense."""
    training_settings = {**settings["training"], "seed": seed, "flip": False}
    _, total = main_network.budget(training_settings)
    where = loop.device()
    state, mask = main_network.load_start("models/start")
    if not pretrained:
        head = read_yaml("models/plan/start.yaml")
        state.weights = clip.random_weights(main_network.BASE, {"seed": seed, **head})
    data = load_split(main_network.ENCODED / "train.safetensors", where)
    name = "pre-trained" if pretrained else "random"
    state = loop.train(
        main_network.build(state, training_settings), state, masks.full(mask), data,
        training_settings, Cost(), last=total, total=total, label=f"{name}, seed {seed}",
    )  # fmt: skip
    model = main_network.build(state, training_settings).to(where)
    validation = load_split(main_network.ENCODED / "validation.safetensors", where)
    precision = loop.resolve_precision(training_settings["precision"])
    return 100 * metrics.score("accuracy", *loop.predict(model, validation, precision))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    with open("params.yaml") as file:
        settings = check(yaml.safe_load(file))
    if settings["model"] != "clip-glyph":
        raise UserError("params.yaml: model: must be clip-glyph (make repro FAMILY=clip)")
    print("| image tower at the start | validation accuracy (%) |")
    print("|---|---|")
    for pretrained in (True, False):
        scores = [final_score(settings, seed, pretrained) for seed in seeds]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        listed = ", ".join(f"{score:.1f}" for score in scores)
        name = "pre-trained on glyphs" if pretrained else "random"
        print(f"| {name} | {statistics.mean(scores):.2f}{spread} ({listed}) |", flush=True)


if __name__ == "__main__":
    main()
