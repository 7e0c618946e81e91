"""A finished network on the test split, once; with its exact sparsity and its cost."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from instant_soup.data.batches import load_split
from instant_soup.errors import UserError
from instant_soup.files import code_version, read_json, read_yaml, run_stage, write_json
from instant_soup.methods import criteria
from instant_soup.models import base as models
from instant_soup.pipeline import main_network
from instant_soup.pipeline.tracking import stage_run
from instant_soup.sparsity import masks
from instant_soup.training import loop, metrics
from instant_soup.training.state import load_state

NO_TRAINING = {"dropout": "model", "freeze_embeddings": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    method = parser.parse_args().method
    settings = read_yaml(f"models/plan/evaluate_{method}.yaml")
    folder = Path(f"models/retrained/{method}")
    identity = {key: settings[key] for key in ("model", "dataset", "method", "seed")}
    tags = {**identity, "sparsity": settings["target_sparsity"]}
    with stage_run(f"evaluate {method}", settings, tags) as run:
        state = load_state(folder / "state", moments=False)
        mask = masks.load(folder / "mask.safetensors", main_network.prunable_shapes())
        revived = [n for n, kept in mask.items() if state.weights[n][~kept].any()]
        if revived:
            raise UserError(f"{folder}: pruned weights of {revived[0]} are not zero")

        where = loop.device()
        precision = loop.resolve_precision(settings["precision"])
        network = main_network.build(state, NO_TRAINING).to(where)
        test = load_split("data/encoded/test.safetensors", where)
        scores = metrics.scores(*loop.predict(network, test, precision))
        zero_shot = {}
        if settings["zero_shot"]:
            start = load_state("models/start/state")
            network = main_network.build(start, NO_TRAINING).to(where)
            zero_shot["zero_shot"] = metrics.scores(*loop.predict(network, test, precision))

        pretrained = models.pretrained_prunable(main_network.BASE)
        one_shot = criteria.magnitude(pretrained, masks.sparsity(mask))
        kept, total = masks.count(mask)
        write_json(
            f"reports/results/{method}.json",
            {
                **{k: v for k, v in settings.items() if k not in ("precision", "zero_shot")},
                "precision": precision,
                "base": models.digest(pretrained),
                "code_version": code_version(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "test": scores,
                **zero_shot,
                "sparsity": masks.sparsity(mask),
                "pruned_weights": total - kept,
                "prunable_weights": total,
                "layer_sparsity": masks.sparsity_by_layer(mask),
                "matrix_sparsity": masks.sparsity_by_matrix(mask),
                "overlap_one_shot": None
                if method == "dense"
                else masks.cosine_similarity(mask, one_shot),
                **read_json(folder / "run.json"),
            },
        )
        main_network.save_curve(
            f"reports/curves/{method}.csv", main_network.load_curve(folder / "curve.csv")
        )
        run.summary(**{f"test_{k}": v for k, v in scores.items()}, sparsity=masks.sparsity(mask))
        run.artifact(f"reports/results/{method}.json")


if __name__ == "__main__":
    run_stage(main)
