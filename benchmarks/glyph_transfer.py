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
from dataclasses import replace
from pathlib import Path

from common import Bare, recipe_of

from instant_soup.errors import UserError
from instant_soup.files import read_yaml
from instant_soup.models.head import Head
from instant_soup.pipeline.plan import Params, check


def final_score(params: Params, seed: int, pretrained: bool) -> float:
    """Validation accuracy (%) after the whole budget, dense."""
    run = Bare(recipe_of(params, seed=seed))
    if not pretrained:
        run.head = replace(Head.read("models/plan/start.yaml"), seed=seed)
        run.state = run.random_state()
    name = "pre-trained" if pretrained else "random"
    run.train(run.total, f"{name}, seed {seed}")
    return 100 * run.score_on("validation")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    params = check(read_yaml(Path("params.yaml")))
    if params.top.model != "clip-glyph":
        raise UserError("params.yaml: model: must be clip-glyph (make repro FAMILY=clip)")
    print("| image tower at the start | validation accuracy (%) |")
    print("|---|---|")
    for pretrained in (True, False):
        scores = [final_score(params, seed, pretrained) for seed in seeds]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        listed = ", ".join(f"{score:.1f}" for score in scores)
        name = "pre-trained on glyphs" if pretrained else "random"
        print(f"| {name} | {statistics.mean(scores):.2f}{spread} ({listed}) |", flush=True)


if __name__ == "__main__":
    main()
