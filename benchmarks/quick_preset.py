"""How much of the quick budget should mask finding take? The measurement behind the preset.

Prunes progressively to the default sparsity (ISP without denoisers, which hardly differ from it in
the look-ahead of the quick preset) with growing shares of the budget spent on calibration, and
prints the validation accuracy at the end. Needs the data and base model of a pipeline run; the
test split is not touched. About a minute a run on two cores.

    python benchmarks/quick_preset.py --seeds 2
"""

import argparse
from pathlib import Path

from common import Bare, recipe_of

from instant_soup.files import read_yaml
from instant_soup.methods.base import Method
from instant_soup.methods.one_shot import OneShot
from instant_soup.methods.progressive import Progressive
from instant_soup.pipeline.plan import Params, check

SHARES = (0.0, 0.15, 0.3, 0.6, 0.9)  # 0: one-shot, everything pruned at the start


def final_score(params: Params, share: float, **changes: float) -> float:
    """Validation accuracy (%) of one run; `share` of its steps come before the last prune."""
    method: Method = OneShot()
    if share:
        own = vars(params.method(Progressive.name))
        method = Progressive(**{**own, "mask_finding": share})
    run = Bare(recipe_of(params, **changes))
    method.run(run, params.top.sparsity)
    return 100 * run.score_on("validation")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=None, help="budget, if not the preset's")
    arguments = parser.parse_args()
    params = check(read_yaml(Path("params.yaml")))
    budget = {"epochs": arguments.epochs} if arguments.epochs else {}
    sparsity = f"{params.top.sparsity:.0%}"
    print(f"| share of the budget before the last prune to {sparsity} | validation (%) |")
    print("|---|---|")
    for share in SHARES:
        scores = [final_score(params, share, seed=s, **budget) for s in range(arguments.seeds)]
        listed = ", ".join(f"{score:.1f}" for score in scores)
        print(f"| {share:.0%} | {sum(scores) / len(scores):.1f} ({listed}) |", flush=True)


if __name__ == "__main__":
    main()
