"""A finished network on the test split, once; with its exact sparsity and its cost."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from instant_soup.data.batches import load_split
from instant_soup.errors import UserError
from instant_soup.files import code_version, read_json, write_json
from instant_soup.methods.registry import DENSE
from instant_soup.models import base as models
from instant_soup.pipeline import workspace
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.run import classifier
from instant_soup.pipeline.stage_files import EvaluateStage
from instant_soup.pipeline.tracking import stage_run
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.pq import free_share
from instant_soup.training import loop, metrics
from instant_soup.training.state import load_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, help="as in params.yaml")
    method = parser.parse_args().method
    stage = EvaluateStage.read(f"models/plan/evaluate_{method}.yaml")
    folder = Path(f"models/retrained/{method}")
    tags = {**stage.identity(), "sparsity": stage.target_sparsity}
    with stage_run(f"evaluate {method}", stage.contents(), tags) as tracked:
        state = load_state(folder / "state", moments=False)
        mask = workspace.load_mask(folder)
        revived = [n for n, kept in mask.items() if state.weights[n][~kept].any()]
        if revived:
            raise UserError(f"{folder}: pruned weights of {revived[0]} are not zero")

        where = loop.device()
        precision = loop.resolve_precision(stage.precision)
        test = load_split(workspace.ENCODED / "test.safetensors", where)
        network = classifier(state).to(where)
        found = metrics.scores(*loop.predict(network, test, precision))
        zero_shot = {}
        if stage.zero_shot:
            network = classifier(load_state(workspace.START / "state")).to(where)
            zero_shot["zero_shot"] = metrics.scores(*loop.predict(network, test, precision))

        pretrained = models.pretrained_prunable(workspace.BASE)
        one_shot = scores.magnitude(pretrained, masks.sparsity(mask))
        kept, total = masks.count(mask)
        write_json(
            f"reports/results/{method}.json",
            {
                **stage.identity(),
                "precision": precision,
                "base": models.digest(pretrained),
                "pq_index": free_share(pretrained),
                "code_version": code_version(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "test": found,
                **zero_shot,
                "sparsity": masks.sparsity(mask),
                "pruned_weights": total - kept,
                "prunable_weights": total,
                "layer_sparsity": masks.sparsity_by_layer(mask),
                "matrix_sparsity": masks.sparsity_by_matrix(mask),
                "overlap_one_shot": None
                if method == DENSE
                else masks.cosine_similarity(mask, one_shot),
                **read_json(folder / "run.json"),
            },
        )
        curve = workspace.load_curve(folder / "curve.csv")
        workspace.save_curve(f"reports/curves/{method}.csv", curve)
        tracked.summary(**{f"test_{k}": v for k, v in found.items()}, sparsity=masks.sparsity(mask))
        tracked.artifact(f"reports/results/{method}.json")


if __name__ == "__main__":
    run_stage(main)
