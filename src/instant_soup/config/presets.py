"""The presets of each family: what a `null` in params.yaml stands for.

`paper` is Table 1 of the paper. `quick` is the same algorithm scaled to minutes on two CPU cores;
docs/method.md tells how those of texts were chosen. A section that a preset lacks, or a key
of a section, means nothing to that family.
"""

from typing import Any

Preset = dict[str, dict[str, Any]]

# What all four presets have in common, by section.
COMMON: Preset = {
    "training": {"warmup": 0.0, "clip_norm": 1.0, "precision": "auto", "processes": 1},
    "isp": {
        "rate_of": "total",
        "subset": 0.1,
        "learning_rate_range": [0.5, 5.0],
        "combine": "union",
        "adjust": "every_round",
        "growing": True,
        "own_mask": False,
    },
    "criteria": {"min_density": 0.05, "m": 4},
    "early_bird": {"window": 3},
    "imp": {"rate_of": "total", "rewind": 0.05, "coefficients": [0.1, 0.3, 0.5, 0.7, 0.9]},
    "model_soup": {
        "learning_rate_range": [0.5, 2.0],
        "weight_decay_range": [0.0, 0.1],
        "sparsity_range": [0.1, 0.5],
        "subset": 0.1,
        "coefficients": [0.1, 0.3, 0.5, 0.7, 0.9],
    },
}


def preset(**sections: dict[str, Any]) -> Preset:
    """A preset's sections, with COMMON's values added."""
    return {name: COMMON.get(name, {}) | section for name, section in sections.items()}


BERT = {
    "paper": preset(
        data={"train_rows": "all", "validation_rows": 2000, "test_rows": 2000, "max_length": 128},
        training={
            "epochs": 10,
            "learning_rate": 2e-5,
            "weight_decay": 0.0,
            "batch_size": 32,
            "dropout": "model",
            "freeze_embeddings": False,
            "evaluations": 20,
        },
        isp={
            "compression_rate": 0.1,
            "calibration": 0.1,
            "look_ahead": 30,
            "denoisers": 4,
            "weight_decay_range": [0.0, 0.1],
        },
        criteria={"batches": 8},
        early_bird={"every": 1.0, "threshold": 0.1},
        imp={"compression_rate": 0.1},
        model_soup={"networks": 8, "denoisers": 8, "steps": 100},
    ),
    "quick": preset(
        data={"train_rows": "all", "validation_rows": 500, "test_rows": 2000, "max_length": 64},
        training={
            "epochs": 0.6,
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "batch_size": 32,
            "dropout": 0.0,
            "freeze_embeddings": True,
            "evaluations": 4,
        },
        isp={
            "compression_rate": 0.2,
            "calibration": 0.02,
            "look_ahead": 10,
            "denoisers": 3,
            "weight_decay_range": [0.0, 0.1],
        },
        criteria={"batches": 4},
        early_bird={"every": 0.1, "threshold": 0.02},
        imp={"compression_rate": 0.2},
        model_soup={"networks": 3, "denoisers": 3, "steps": 20},
    ),
}

CLIP = {
    "paper": preset(
        data={"train_rows": "all", "validation_rows": 2000, "test_rows": 2000},
        training={
            "epochs": 22,
            "learning_rate": 1e-5,
            "weight_decay": 0.1,
            "batch_size": 128,
            "crop": 0.125,
            "evaluations": 20,
        },
        isp={
            "compression_rate": 0.15,
            "calibration": 0.1,
            "look_ahead": 50,
            "denoisers": 5,
            "weight_decay_range": [0.0, 0.2],
        },
        criteria={"batches": 8},
        early_bird={"every": 1.0, "threshold": 0.1},
        imp={"compression_rate": 0.15},
        model_soup={"networks": 8, "denoisers": 8, "steps": 100},
        pretraining={
            "objective": "contrastive",
            "steps": 20000,
            "batch_size": 1024,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "warmup": 0.05,
            "seed": 0,
            "precision": "auto",
        },
    ),
    "quick": preset(
        data={"train_rows": "all", "validation_rows": 500, "test_rows": 2000},
        training={
            "epochs": 6,
            "learning_rate": 5e-4,
            "weight_decay": 0.1,
            "batch_size": 128,
            "crop": 0.0625,
            "evaluations": 4,
        },
        isp={
            "compression_rate": 0.2,
            "calibration": 0.2,
            "look_ahead": 10,
            "denoisers": 3,
            "weight_decay_range": [0.0, 0.2],
        },
        criteria={"batches": 4},
        early_bird={"every": 1.0, "threshold": 0.02},
        imp={"compression_rate": 0.2},
        model_soup={"networks": 3, "denoisers": 3, "steps": 20},
        pretraining={
            "objective": "contrastive",
            "steps": 1000,
            "batch_size": 128,
            "learning_rate": 1e-3,
            "weight_decay": 0.1,
            "warmup": 0.1,
            "seed": 0,
            "precision": "auto",
        },
    ),
}

PRESETS = {"bert": BERT, "clip": CLIP}
