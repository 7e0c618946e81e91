"""Text classifiers through transformers: loading, checks, and task heads."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from instant_soup.data.batches import check_tokens, encode
from instant_soup.errors import UserError
from instant_soup.models.first_token import leave_out_others
from instant_soup.models.forward import logits_of
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel, packaged_folder
from instant_soup.models.matrices import Weights, check_finite, check_weights, checked_prunable
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.sparsity.compact import apart

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
# What is taken from a hub's repository: one checkpoint, its configuration, its tokenizer.
FROM_HUB = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors"]
# Kinds whose classifier reads only the first token, and whose blocks have BERT's parts.
BY_FIRST_TOKEN = ("bert", "camembert", "electra", "roberta", "xlm-roberta")


def transformers_auto() -> Any:
    """The module of auto classes of transformers, without network messages.

    It is imported without scikit-learn, scipy and torchvision. transformers imports them (over two
    seconds) for assisted generation, object detection and images, which no text classifier needs,
    and every stage process would pay for it.
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


def load_pretrained(folder: str | Path) -> tuple[Any, set[str]]:
    """Load a folder's pre-trained sequence classifier.

    Random weights must never pass for pre-trained ones.

    Args:
        folder: A folder with config.json and model.safetensors.

    Returns:
        The classifier, with weights in fp32, and the names of its weights that are new (the head).

    Raises:
        UserError: If it cannot be loaded, or if more than the head is missing from the checkpoint.
    """
    model, new = read_checkpoint(transformers_auto().AutoModelForSequenceClassification, folder)
    encoder_prefix = f"{model.base_model_prefix}."
    lost = sorted(n for n in new if n.startswith(encoder_prefix) and "pooler" not in n)
    if lost:
        raise UserError(
            f"model: {folder} lacks {len(lost)} weights of its encoder, first {lost[0]}"
        )
    return model, new


def read_checkpoint(kind: Any, folder: str | Path) -> tuple[Any, set[str]]:
    """Read a folder's checkpoint as a kind of model, by one of transformers' auto classes.

    Returns:
        The model, in fp32, and the names of its weights that the checkpoint does not have.

    Raises:
        UserError: If it cannot be loaded.
    """
    try:
        model, loading = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
            dtype=torch.float32,
        )
    except Exception as error:  # transformers raises a dozen kinds, by what is damaged
        raise UserError(f"model: {folder} cannot be loaded: {reason(error)}") from None
    return model, {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}


def reason(error: Exception) -> str:
    """What a library says of its failure, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if "trust_remote_code" in text:
        text = (
            "it asks to run code of its own (auto_map in config.json); allowed: models that "
            "transformers itself has"
        )
    return text[:300]


def downloaded(repository: str) -> Path:
    """Find a repository's files in the hub's local cache, and download them if need be.

    Only the hub is asked: a local folder that has the repository's name is another thing.

    Args:
        repository: The repository's name.

    Returns:
        The folder, which is named after the commit.

    Raises:
        UserError: If the files cannot be downloaded.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=FROM_HUB))
    except Exception as error:  # the hub client raises a dozen kinds
        raise UserError(
            f"model: {repository} cannot be loaded from the Hugging Face hub (is there a "
            f"network?): {reason(error)}"
        ) from None


def prepare_base(model: BaseModel, folder: Path) -> Weights:
    """Write a pre-trained encoder, without a task head, into a folder.

    Args:
        model: The model.
        folder: Gets config.json, model.safetensors and the tokenizer, which says how many tokens
            the model takes.

    Returns:
        Name → prunable weight.

    Raises:
        UserError: If no text classifier can be made of the model.
    """
    source = folder_of(model)
    network, new = load_pretrained(source)
    # The head is new for each task and seed; what the checkpoint does not hold stays out.
    head = new | {n for n in network.state_dict() if not n.startswith(network.base_model_prefix)}
    check_finite(model.name, {n: w for n, w in network.named_parameters() if n not in head})
    encoder = {n: w.contiguous() for n, w in network.state_dict().items() if n not in head}
    save_file(apart(encoder), folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer = load_tokenizer(source)
    set_padding(network, tokenizer)
    tokenizer.model_max_length = positions(network)
    tokenizer.save_pretrained(folder)
    network.config.save_pretrained(folder)
    check_texts(model.name, network, folder / TOKENIZER)
    return checked_prunable(model.name, network)


def folder_of(model: BaseModel) -> Path:
    """Where a model's files are; those of the hub come first, and their commit is said."""
    if model.source == "packaged":
        return packaged_folder(model.package, model.folder)
    if model.source != "hub":
        return Path(model.path)
    folder = downloaded(model.repo)
    print(f"{model.repo} of the hub, commit {folder.name}")
    return folder


def load_tokenizer(folder: str | Path) -> Any:
    """Load a folder's fast tokenizer (tokenizer.json).

    Raises:
        UserError: If there is none, or a damaged one.
    """
    transformers_auto()
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a dozen kinds, tokenizers' own among them
        if not (Path(folder) / TOKENIZER).exists():
            raise UserError(
                f"model: {folder} has no tokenizer ({TOKENIZER}); allowed: a model's folder with "
                "its own"
            ) from None
        raise UserError(
            f"model: the tokenizer of {folder} cannot be loaded: {reason(error)}"
        ) from None
    if not tokenizer.is_fast:
        raise UserError(f"model: {folder} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def set_padding(network: Any, tokenizer: Any) -> None:
    """Give a model without a padding token its tokenizer's, or else the one that ends a text.

    A decoder classifies by the last token that is no padding.

    Raises:
        UserError: If the tokenizer has neither.
    """
    configs = {id(c): c for c in (network.config, network.config.get_text_config())}.values()
    ids = [getattr(config, "pad_token_id", None) for config in configs]
    given = next((number for number in ids if number is not None), None)
    if given is None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        given = tokenizer.pad_token_id
        if given is None:
            raise UserError(
                "model: it has no padding token, which batches of texts need; allowed: a model "
                "with pad_token_id in config.json, or pad_token or eos_token in "
                "tokenizer_config.json"
            )
        print(f"no padding token in config.json: {tokenizer.pad_token} is taken")
    for config in configs:
        config.pad_token_id = given


def positions(network: Any) -> int:
    """The most tokens of a text that a model has positions for; 10^30 where nothing bounds them."""
    config = network.config.get_text_config()
    most = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    if most is None or most < 0:  # XLNet and others with relative positions
        return int(1e30)
    for name, module in network.named_modules():
        # RoBERTa and its kin count from behind the padding's position.
        behind = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and behind is not None:
            most = min(most, len(module.weight) - behind - 1)
    return int(most)


def check_texts(name: str, network: Any, tokenizer: Path) -> None:
    """Check that a network takes a batch of texts, as its tokenizer makes them.

    Raises:
        UserError: If it does not.
    """
    config = network.config.get_text_config()
    length = min(positions(network), 64)
    texts = encode(tokenizer, [["a"], ["a short sentence"]], [0, 0], length, config.pad_token_id)
    check_tokens(name, texts, getattr(config, "vocab_size", None))
    try:
        with torch.no_grad():
            logits = logits_of(network.eval(), texts.rows(torch.arange(2)))
    except Exception as error:  # whatever a network makes of inputs that it is not made for
        raise UserError(f"model: {name} takes no batch of texts: {reason(error)}") from None
    if logits.shape != (2, network.config.num_labels) or not logits.isfinite().all():
        raise UserError(f"model: {name} gives no finite numbers for texts")


def configuration(base: str | Path, outputs: int, dropout: float | str = "model") -> Any:
    """The model configuration of a base folder.

    Args:
        base: The base folder.
        outputs: How many outputs the head has.
        dropout: Replaces every dropout probability; "model" leaves them as they are.

    Returns:
        A configuration of transformers.
    """
    transformers_auto()
    from transformers.models.auto.configuration_auto import AutoConfig

    config = AutoConfig.from_pretrained(
        base, num_labels=outputs, local_files_only=True, trust_remote_code=False
    )
    config.dtype = torch.float32  # of what is trained, whatever the checkpoint had
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


def read_weights(base: Path) -> Weights:
    """All weights of a base folder, under their own names."""
    return load_file(base / WEIGHTS)


def start_weights(base: Path, head: Head) -> Weights:
    """The base's weights and a task head drawn from the seed."""
    return {**random_weights(base, head), **read_weights(base)}


def classifier(
    base: Path,
    weights: Weights,
    *,
    outputs: int,
    dropout: float | str | None = "model",
    freeze_embeddings: bool | None = False,
) -> nn.Module:
    """Build the classifier of a base folder's architecture around given weights.

    Args:
        base: The base folder.
        weights: Name → tensor; not copied.
        outputs: How many outputs the head has.
        dropout: Replaces every dropout probability; "model" or None leaves them as they are.
        freeze_embeddings: Whether the embeddings stay; None: they train.

    Returns:
        The network.

    Raises:
        UserError: If the weights are not exactly the architecture's.
    """
    auto = transformers_auto()
    config = configuration(base, outputs, "model" if dropout is None else dropout)
    model_class = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
        dtype=torch.float32,
    )
    check_weights(base, model, weights)
    if freeze_embeddings:
        freeze_tables(model)
    if config.model_type in BY_FIRST_TOKEN:
        leave_out_others(model.base_model.encoder.layer[-1].attention.output)
    return model


def freeze_tables(model: nn.Module) -> None:
    """Exclude the embedding tables from training (their gradients are then never computed)."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
