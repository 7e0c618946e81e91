"""Causal language models through transformers: loading, what is checked of them, their layout.

The whole model is trained: its head is the base model's own, and often its table of embeddings.
Prunable are the matrices of the repeated blocks. GPT-2's stand transposed in its checkpoints
(`Conv1D`: inputs × outputs); here every matrix is outputs × inputs, so that rows, inputs and N:M
patterns mean the same of all models. A base folder has the names that transformers has for the
model now (Mixtral's experts are one tensor there), an exported one those of the hub.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from instant_soup.data.batches import check_tokens, pack
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json
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
from instant_soup.models.known import BaseModel, weight_files
from instant_soup.models.layout import Layout
from instant_soup.models.matrices import (
    Weights,
    check_finite,
    check_used,
    check_weights,
    checked_prunable,
    is_conv1d,
)
from instant_soup.models.memory import TRAINED, check_fits
from instant_soup.sparsity.compact import apart

CONFIG, WEIGHTS = "causal_lm.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # which file has which weight
GENERATION = "generation_config.json"  # how texts are made, where a checkpoint says so
SHARD = 5 * 10**9  # bytes: what is larger is written in several files


def load_pretrained(folder: str | Path, each: int = TRAINED) -> Any:
    """A folder's pre-trained language model, in fp32, its matrices outputs × inputs.

    UserError when it cannot be had, when the memory that is free is too little for it (`each`
    bytes for a weight), or when the checkpoint lacks any weight: random ones must never pass for
    pre-trained ones.
    """
    check_fits(Path(folder).name, weight_files(folder), each)
    check_files(Path(folder))
    model, new = read_checkpoint(transformers_auto().AutoModelForCausalLM, folder)
    if new:
        raise UserError(
            f"model: {folder} lacks {len(new)} weights of a language model, first {min(new)}; "
            "allowed: a checkpoint of a causal language model"
        )
    return as_linear(model)


def check_files(folder: Path) -> None:
    """UserError for a model that cannot be had, or whose files do not hold it as it is built.

    No weights are read.
    """
    network = skeleton(folder)
    files: dict[str, Path] = {}
    for file in weight_files(folder):
        with contextlib.suppress(OSError, SafetensorError):  # whoever reads it says what is wrong
            files |= dict.fromkeys(names_in(file), file)
    Layout(network, files).check_files(folder, files)
    as_linear(network)


def prepare_base(model: BaseModel, folder: Path) -> Weights:
    """Write a pre-trained language model into `folder`; return what is prunable of it.

    Writes configuration, weights and tokenizer as the checkpoint has them, and in CONFIG what is
    read of them here. UserError for a model that predicts no tokens of texts.
    """
    source = folder_of(model)
    tokenizer, network = load_tokenizer(source), load_pretrained(source)
    check_finite(model.name, dict(network.named_parameters()))
    found = checked_prunable(model.name, network)
    tokenizer.save_pretrained(folder)
    network.config.save_pretrained(folder)
    if (source / GENERATION).exists():
        shutil.copyfile(source / GENERATION, folder / GENERATION)
    write_json(folder / CONFIG, {"positions": positions(network)})
    check_predicts(model.name, network, folder / TOKENIZER, found)
    weights = turned(folder, network.state_dict())
    own = apart({name: w.contiguous() for name, w in weights.items()})
    save_file(own, folder / WEIGHTS, metadata={"format": "pt"})
    return found


def check_predicts(name: str, network: Any, tokenizer: Path, found: Weights) -> None:
    """UserError unless a network predicts each token of a text from those before it alone.

    All prunable matrices must take part. The tokens are as its tokenizer gives them.
    """
    tokens = pack(tokenizer, ["A short sentence, and another one."], 2)
    vocabulary = network.config.get_text_config().vocab_size
    check_tokens(name, tokens, vocabulary)
    whole = tokens.input_ids.long().view(1, -1)[:, : min(8, positions(network))]
    seen = whole.shape[1] // 2
    other = whole.clone()
    other[:, seen:] = (other[:, seen:] + 1) % vocabulary
    try:
        logits, changed = (logits_of(network.eval(), {"input_ids": ids}) for ids in (whole, other))
    except Exception as error:  # whatever a network makes of inputs that it is not made for
        raise UserError(f"model: {name} takes no block of tokens: {reason(error)}") from None
    if logits.shape[:2] != whole.shape or not logits.isfinite().all():
        raise UserError(f"model: {name} gives no finite numbers for texts")
    if differ(logits[:, :seen], changed[:, :seen]):
        raise UserError(
            f"model: {name} sees the tokens that it is to predict "
            f"({network.config.model_type}); allowed: a causal language model"
        )
    check_used(name, logits, found)


def configuration(base: str | Path) -> Any:
    """The model configuration of a base folder; UserError where it has none that is known."""
    transformers_auto()
    from transformers.models.auto.configuration_auto import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a dozen kinds, by what is wrong with it
        raise UserError(
            f"model: the configuration of {base} cannot be read: {reason(error)}; allowed: a "
            "folder that transformers has saved"
        ) from None
    config.dtype = torch.float32  # of what is trained, whatever the checkpoint had
    config.use_cache = False  # a block is predicted at once
    return config


def as_linear(model: Any) -> Any:
    """The model with a linear layer in place of each Conv1D of GPT-2, and of Falcon's own kind.

    UserError for experts whose matrices are inputs × outputs, as those of GPT-OSS and Llama 4.
    """
    for module in list(model.modules()):
        if type(module).__name__ == "FalconLinear":  # whose inputs could not be watched
            module.__class__ = nn.Linear
        if getattr(module, "is_transposed", type(module).__name__ == "Llama4TextExperts"):
            raise UserError(
                f"model: {model.config.model_type}: the matrices of its experts are inputs × "
                "outputs; allowed: experts of outputs × inputs, as those of Mixtral and Qwen"
            )
        for name, child in module.named_children():
            if is_conv1d(child):
                inputs, outputs = child.weight.shape
                linear = nn.Linear(inputs, outputs, device="meta")
                linear.weight, linear.bias = nn.Parameter(child.weight.T.contiguous()), child.bias
                setattr(module, name, linear)
    return model


def skeleton(folder: str | Path) -> Any:
    """The network of a folder's model with its weights on no device, as transformers makes it."""
    auto, config = transformers_auto(), configuration(folder)
    try:
        with torch.device("meta"):
            return auto.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # a dozen kinds, by what is wrong with it
        raise UserError(f"model: {folder} cannot be loaded: {reason(error)}") from None


def layout(folder: str | Path) -> Layout:
    """How the weights of a folder's model stand in files."""
    return Layout(skeleton(folder))


def turned(folder: str | Path, tensors: Weights) -> Weights:
    """Weights or masks of a folder's model out of its checkpoint's layout into ours, and back.

    Those of a Conv1D are transposed; all others stay as they are.
    """
    return layout(folder).turn(tensors)


def names_in(file: Path) -> list[str]:
    """The names of a file's tensors."""
    with safe_open(file, framework="numpy") as opened:
        return list(opened.keys())


def write_weights(folder: Path, weights: Weights) -> None:
    """Write weights as loaders read them, with their index: in several files, if above SHARD."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(apart(weights), folder, max_shard_size=SHARD, metadata={"format": "pt"})
    write_index(folder)


def write_index(folder: Path) -> None:
    """Write which of a folder's files has which weight, of a single file too.

    Without it vLLM and SGLang take every .safetensors of the folder for weights: mask and compact
    file, too.
    """
    where: dict[str, str] = {}
    size = 0
    for file in weight_files(folder):
        with safe_open(file, framework="numpy") as opened:
            where |= dict.fromkeys(opened.keys(), file.name)
        with file.open("rb") as raw:  # what is not the header, whose length comes first
            size += file.stat().st_size - 8 - int.from_bytes(raw.read(8), "little")
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})


def tied(network: nn.Module) -> set[str]:
    """The weights of a network that are another one's under a second name."""
    own = dict(network.named_parameters())
    every = dict(network.named_parameters(remove_duplicate=False))
    return every.keys() - own.keys()


def read_weights(base: Path) -> Weights:
    """All weights of a base folder, under their own names, matrices as outputs × inputs."""
    return turned(base, load_file(base / WEIGHTS))


def start_weights(base: Path, head: Head) -> Weights:
    """The base's weights: its head is its own."""
    return read_weights(base)


def random_weights(base: Path, head: Head) -> Weights:
    """A whole language model of the base's architecture, drawn from the seed."""
    torch.manual_seed(head.seed)
    auto = transformers_auto()
    return as_linear(auto.AutoModelForCausalLM.from_config(configuration(base))).state_dict()


def classifier(
    base: Path,
    weights: Weights,
    *,
    outputs: int = 0,
    dropout: float | str | None = None,
    freeze_embeddings: bool | None = None,
) -> nn.Module:
    """The language model of a base folder's architecture around given weights.

    Its outputs are rows × tokens × vocabulary. The settings are those of bert.classifier and mean
    nothing here. UserError when the weights are not exactly the architecture's.
    """
    auto = transformers_auto()
    config = configuration(base)
    model_class = auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class.from_pretrained(
        None,
        config=config,
        state_dict=turned(base, weights),
        ignore_mismatched_sizes=True,
        trust_remote_code=False,
        dtype=torch.float32,
    )
    model = as_linear(model)
    check_weights(base, model, {**weights, **{n: model.state_dict()[n] for n in tied(model)}})
    return model


def longest(base: Path) -> int:
    """The most tokens of a block that a base folder's model takes."""
    return int(read_json(base / CONFIG)["positions"])
