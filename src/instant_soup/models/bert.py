"""The BERT family through transformers: loading, task heads, and what a step costs."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from instant_soup.errors import UserError
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel, packaged_folder
from instant_soup.models.matrices import Weights, check_weights, prunable
from instant_soup.models.torchvision_cpu import declare_missing_operators

WEIGHTS = "model.safetensors"


def transformers_auto() -> Any:
    """transformers' module of auto classes, without network chatter.

    Without scikit-learn, scipy and torchvision, too: transformers imports them (over two seconds)
    for assisted generation, object detection and images, which no text classifier needs; every
    stage process would pay for it.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    declare_missing_operators()
    import transformers.utils
    import transformers.utils.import_utils
    from transformers.utils import logging

    for module in (transformers.utils, transformers.utils.import_utils):
        module.is_scipy_available = lambda: False  # type: ignore[attr-defined]
        module.is_sklearn_available = lambda: False  # type: ignore[attr-defined]
        module.is_torchvision_available = lambda: False  # type: ignore[attr-defined]
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from transformers.models.auto import modeling_auto

    return modeling_auto


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


def prepare_base(model: BaseModel, folder: Path) -> Weights:
    """Write a pre-trained encoder, without a task head, into `folder`; return what is prunable.

    Writes config.json, model.safetensors and the tokenizer.
    """
    hub, source = model.source == "hub", source_of(model)
    network, new = load_pretrained(source, hub)
    # The head is new for each task and seed; what the checkpoint does not hold stays out.
    head = new | {n for n in network.state_dict() if not n.startswith(network.base_model_prefix)}
    encoder = {n: w.contiguous() for n, w in network.state_dict().items() if n not in head}
    save_file(encoder, folder / WEIGHTS, metadata={"format": "pt"})
    network.config.save_pretrained(folder)
    save_tokenizer(source, folder, hub)
    return prunable(network)


def source_of(model: BaseModel) -> str | Path:
    """What transformers loads a model from: the hub's name for it, or a folder."""
    if model.source == "packaged":
        return packaged_folder(model.package, model.folder)
    return model.repo if model.source == "hub" else Path(model.path)


def save_tokenizer(source: str | Path, folder: Path, hub: bool) -> None:
    """Write the model's fast tokenizer (tokenizer.json and its configuration) into a folder."""
    transformers_auto()
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=not hub)
    if not tokenizer.is_fast:
        raise UserError(f"model: {source} has no fast tokenizer (tokenizer.json)")
    tokenizer.save_pretrained(folder)


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


def random_weights(base: Path, head: Head) -> Weights:
    """A whole classifier of the base's architecture, drawn from the seed."""
    torch.manual_seed(head.seed)
    auto = transformers_auto()
    config = configuration(base, head.outputs)
    return auto.AutoModelForSequenceClassification.from_config(config).state_dict()


def start_weights(base: Path, head: Head) -> Weights:
    """The base's weights and a task head drawn from the seed."""
    return {**random_weights(base, head), **load_file(base / WEIGHTS)}


def classifier(
    base: Path,
    weights: Weights,
    *,
    outputs: int,
    dropout: float | str | None = "model",
    freeze_embeddings: bool | None = False,
) -> nn.Module:
    """The classifier of a base folder's architecture around given weights (not copied).

    None stands for the default. UserError when the weights are not exactly the architecture's.
    """
    auto = transformers_auto()
    config = configuration(base, outputs, "model" if dropout is None else dropout)
    model_class = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None, config=config, state_dict=weights, ignore_mismatched_sizes=True
    )
    check_weights(base, model, weights)
    if freeze_embeddings:
        freeze_tables(model)
    return model


def freeze_tables(model: nn.Module) -> None:
    """Exclude the embedding tables from training (their gradients are then never computed)."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)


def forward_flops(
    model: Any, prunable_weights: int, batch: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """FLOPs of one forward pass of a batch: those in prunable matrices, and all others.

    A multiply-add counts as two. Prunable: 2 · weights · tokens. Others: the two attention
    products, 4 · layers · length² · width a sequence, and pooler and head. Norms, activations
    and look-ups are left out. A training step costs three times a forward pass.
    """
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    sequences, length = batch["input_ids"].shape
    attention = 4 * layers * length**2 * width
    head = 2 * width * (width + model.config.num_labels)
    return 2.0 * prunable_weights * sequences * length, float(sequences * (attention + head))
