"""Text classifiers through transformers: loading, checks, and task heads."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from instant_soup.data.batches import check_tokens, encode
from instant_soup.errors import UserError
from instant_soup.models.first_token import leave_out_others
from instant_soup.models.forward import differ, logits_of
from instant_soup.models.head import Head
from instant_soup.models.hugging_face import (
    TOKENIZER,
    folder_of,
    load_tokenizer,
    positions,
    read_checkpoint,
    reason,
    transformers_auto,
)
from instant_soup.models.known import BaseModel
from instant_soup.models.matrices import (
    Weights,
    check_finite,
    check_used,
    check_weights,
    checked_prunable,
)
from instant_soup.sparsity.compact import apart

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Kinds whose classifier reads only the first token, and whose blocks have BERT's parts.
BY_FIRST_TOKEN = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

# Kinds of which a part of the classifier's head (head.…) is pre-trained, as that of masked tokens.
WITH_PRE_TRAINED_HEAD = ("modernbert", "modernbert-decoder")


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
    kept = [network.base_model_prefix]
    if network.config.model_type in WITH_PRE_TRAINED_HEAD:
        kept.append("head.")
    head = new | {n for n in network.state_dict() if not n.startswith(tuple(kept))}
    check_finite(model.name, {n: w for n, w in network.named_parameters() if n not in head})
    encoder = {n: w.contiguous() for n, w in network.state_dict().items() if n not in head}
    save_file(apart(encoder), folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer = load_tokenizer(source)
    set_padding(network, tokenizer)
    tokenizer.model_max_length = positions(network)
    tokenizer.save_pretrained(folder)
    network.config.save_pretrained(folder)
    found = checked_prunable(model.name, network)
    check_texts(model.name, network, folder / TOKENIZER, found)
    return found


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


def check_texts(name: str, network: Any, tokenizer: Path, found: Weights) -> None:
    """Check that a network takes a batch of texts, as its tokenizer makes them.

    Args:
        name: The model's name, for errors.
        network: The classifier.
        tokenizer: Its tokenizer's file.
        found: Name → prunable weight; all must take part.

    Raises:
        UserError: If it does not, or if what it says of a text depends on its padding.
    """
    config = network.config.get_text_config()
    length = min(positions(network), 64)
    texts = encode(tokenizer, [["a"], ["a short sentence"]], [0, 0], length, config.pad_token_id)
    check_tokens(name, texts, getattr(config, "vocab_size", None))
    batch = texts.rows(torch.arange(2))
    alone = {key: part[:1, : texts.lengths[0]] for key, part in batch.items() if part.ndim > 1}
    try:
        logits, unpadded = (logits_of(network.eval(), one) for one in (batch, alone))
    except Exception as error:  # whatever a network makes of inputs that it is not made for
        raise UserError(f"model: {name} takes no batch of texts: {reason(error)}") from None
    if logits.shape != (2, network.config.num_labels) or not logits.isfinite().all():
        raise UserError(f"model: {name} gives no finite numbers for texts")
    if differ(logits[:1], unpadded):
        raise UserError(
            f"model: {name}: what it says of a text depends on the padding behind it "
            f"({config.model_type}); allowed: a model that leaves padding out (attention_mask)"
        )
    check_used(name, logits, found)


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
        set_dropout(config, dropout)
    return config


def set_dropout(config: Any, dropout: float | str) -> None:
    """Replace every dropout probability of a configuration, by whatever name (GPT-2's: pdrop)."""
    for name, value in list(vars(config).items()):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, dropout)


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
