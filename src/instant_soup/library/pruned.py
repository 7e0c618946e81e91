"""What `prune` returns; saved, it is a folder that stock loaders and `instant-soup` read."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from instant_soup.errors import UserError
from instant_soup.files import check_new, new_folder, path_of, read_json, write_json
from instant_soup.library.model import unwrapped
from instant_soup.library.run import weights_of
from instant_soup.models import bert, causal, clip, hugging_face, matrices
from instant_soup.models.matrices import check_weights
from instant_soup.models.ticket import BESIDE, FORMAT, TICKET, write_ticket
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.sparsity.compact import apart
from instant_soup.sparsity.masks import Mask

TEST_ROWS = 2000  # that `evaluate` cuts from a folder without a test split
LONGEST = 512  # tokens, where neither tokenizer nor model sets a limit


@dataclass
class Pruned:
    """What `prune` returns: the model (the one given, trained), its mask and its cost.

    Attributes:
        model: The trained model. Its pruned weights are exact zeros.
        mask: Name → boolean tensor of the weight's shape; True: kept.
        cost: `steps` of the run, `search_steps` beside it, `flops` and `sparse_flops` (both counts
            of operations), `seconds`.
        method: The method's name.
        sparsity: Share of the prunable weights that is zero.
        seed: The run's seed.
        found: What a search tells beside its mask: EarlyBird's `drawn` (at which step, and whether
            the mask had settled), a soup's `members` or `coefficients`.
    """

    model: nn.Module
    mask: Mask
    cost: dict[str, float]
    method: str
    sparsity: float  # of the prunable weights, as it is
    seed: int = 0
    found: dict[str, Any] = field(default_factory=dict)

    def save(
        self,
        folder: str | Path,
        *,
        tokenizer: Any = None,
        base: str | Path | None = None,
        classes: list[str] | None = None,
        columns: list[str] | None = None,
        label: str | None = None,
        max_length: int | None = None,
        templates: list[str] | None = None,
    ) -> None:
        """Write the model into a new folder, for the usual loaders and for `instant-soup`.

        A model of transformers is saved by `save_pretrained`, one of open_clip in the layout of
        `local-dir:`, any other as model.safetensors. Beside it lie mask.safetensors,
        compact.safetensors and ticket.json.

        Args:
            folder: The new folder.
            tokenizer: The tokenizer of a model of transformers, or its name or folder. It is saved
                too.
            base: The folder that an open_clip model is from.
            classes: Names of the classes, in the order of the outputs; for `instant-soup evaluate`.
            columns: Names of the data's text or image columns; for `evaluate`.
            label: Name of the data's label column; for `evaluate`.
            max_length: Length at which texts are cut, in tokens; for `evaluate`.
            templates: Prompt templates of images; for `evaluate`.

        Raises:
            UserError: If the folder exists, or something that the format needs is missing.
        """
        model, folder = unwrapped(self.model), path_of(folder, "folder")
        check_new(folder)
        with new_folder(folder) as unfinished:
            if type(model).__module__.partition(".")[0] == "open_clip":
                family, facts = _write_open_clip(unfinished, model, base, templates)
            elif hasattr(model, "save_pretrained") and hasattr(model, "config"):
                family, facts = _write_transformers(
                    unfinished, model, tokenizer, classes, max_length
                )
            else:
                family, facts = "own", {}
                _write_weights(unfinished / bert.WEIGHTS, model)
            facts = {"kind": "classification", "classes": classes or [], **facts}
            floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
            ticket = {
                "format": FORMAT,
                "family": family,
                "model": type(model).__name__,
                "dataset": "local:",  # some folder
                "method": self.method,
                "sparsity": self.sparsity,
                "seed": self.seed,
                "columns": columns,
                "label": label,
                "test_rows": TEST_ROWS,
                **facts,
                "cost": self.cost,
                "dtype": "bf16" if floats == {torch.bfloat16} else "fp32",
            }
            inputs_at = matrices.inputs_at(model)
            write_ticket(unfinished, apart(weights_of(model)), self.mask, ticket, inputs_at)


def _write_transformers(
    folder: Path, model: Any, tokenizer: Any, classes: list[str] | None, max_length: int | None
) -> tuple[str, dict[str, Any]]:
    """The model and its tokenizer as transformers writes them; what a test of texts needs."""
    declare_missing_operators()
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    )

    # Under the names that the model has now, and so the mask; not those of older checkpoints.
    model.save_pretrained(folder, save_original_format=False)
    if isinstance(tokenizer, str | Path):
        from transformers.models.auto.tokenization_auto import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)

    def is_one_of(mapping: Any) -> bool:
        known = mapping.get(type(model.config), ())
        return type(model) in (known if isinstance(known, tuple) else (known,))

    plain = is_one_of(MODEL_FOR_CAUSAL_LM_MAPPING)
    texts = plain or is_one_of(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    if not texts or not (folder / "tokenizer.json").exists():
        return "own", {}
    most = max_length or min(tokenizer.model_max_length, LONGEST)
    length = min(most, hugging_face.positions(model))
    if plain:
        causal.write_index(folder)
        return "causal", {"kind": "language", "classes": [], "max_length": length}
    if model.config.problem_type == "regression" or model.config.num_labels == 1:
        kind, names = "regression", []
    else:
        config = read_json(folder / "config.json")
        names = classes or [model.config.id2label[i] for i in range(model.config.num_labels)]
        if len(names) != model.config.num_labels:
            raise UserError(
                f"classes: {len(names)} names; allowed: {model.config.num_labels}, one for each "
                "of the model's outputs"
            )
        config["id2label"] = dict(enumerate(names))
        config["label2id"] = {name: number for number, name in enumerate(names)}
        write_json(folder / "config.json", config)
        kind = "classification"
    return "bert", {"kind": kind, "classes": names, "max_length": length}


def _write_open_clip(
    folder: Path, model: nn.Module, base: str | Path | None, templates: list[str] | None
) -> tuple[str, dict[str, Any]]:
    """The model in the layout of open_clip's `local-dir:`, with a base folder's configuration."""
    if base is None or not (Path(base) / clip.CONFIG).exists():
        raise UserError(
            f"base: {base!r} is no folder with an {clip.CONFIG}; allowed: the folder that this "
            "open_clip model is from, as the model does not know its own configuration"
        )
    if (own := Path(base) / clip.WEIGHTS).exists():  # a tower alone would be no such model
        check_weights(own, model, load_file(own))
    for file in sorted(Path(base).iterdir()):
        if file.suffix in BESIDE and file.name not in (TICKET, "prunable.json"):
            shutil.copyfile(file, folder / file.name)
    _write_weights(folder / clip.WEIGHTS, model)
    return "clip", {"templates": templates or ["a photo of a {}."]}


def _write_weights(file: Path, model: nn.Module) -> None:
    weights = {name: w.contiguous() for name, w in weights_of(model).items()}
    save_file(apart(weights), file, metadata={"format": "pt"})
