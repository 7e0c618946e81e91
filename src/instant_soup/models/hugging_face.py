"""What both families of transformers share: its libraries, checkpoints and tokenizers."""

import os
from pathlib import Path
from typing import Any

import torch

from instant_soup.errors import UserError
from instant_soup.models.known import BaseModel, packaged_folder
from instant_soup.models.torchvision_cpu import declare_missing_operators

TOKENIZER = "tokenizer.json"
# Capitals, accents, digits, spaces, line breaks, other scripts; one text and two.
PROBES: list[Any] = [
    "The Café, in 1234 words: don't!",
    " two  spaces\tand\n\nlines\n",
    "Ünïcode ﬁ 日本語 русский 🙂 https://example.org/A_b-c?d=5.6",
    ("One text", "and another one"),
]
# What is taken from a hub's repository: one checkpoint, its configuration, its tokenizer.
FROM_HUB = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors"]


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


def folder_of(model: BaseModel) -> Path:
    """Where a model's files are; those of the hub come first, and their commit is said."""
    if model.source == "packaged":
        return packaged_folder(model.package, model.folder)
    if model.source != "hub":
        return Path(model.path)
    folder = downloaded(model.repo)
    print(f"{model.repo} of the hub, commit {folder.name}")
    return folder


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


def load_tokenizer(folder: str | Path) -> Any:
    """Load a folder's fast tokenizer, which gives the tokens that its tokenizer.json says.

    By the class that the configuration names, transformers makes some tokenizers anew, with that
    class's own rules for capitals, spaces and line breaks. Where that gives other tokens, it is
    loaded as the file has it.

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
    file = Path(folder) / TOKENIZER
    if not file.exists() or _tokens(file.read_text()) == _tokens(
        tokenizer.backend_tokenizer.to_str()
    ):
        return tokenizer
    from transformers import PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    known = own.get_vocab()
    for name, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and token in known and getattr(own, name, None) is None:
            setattr(own, name, token)
    return own


def _tokens(file: str) -> list[list[int]]:
    """What a tokenizer, as the text of its file, makes of texts that tell tokenizers apart."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(PROBES)]


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


def reason(error: Exception) -> str:
    """What a library says of its failure, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if "trust_remote_code" in text:
        text = (
            "it asks to run code of its own (auto_map in config.json); allowed: models that "
            "transformers itself has"
        )
    return text[:300]
