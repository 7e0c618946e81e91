"""CLIP models through open_clip: loading, the zero-shot head, and the image classifier.

Only the image tower trains. The head is made once from the text tower (a prompt ensemble), and
stays frozen, as in the paper.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json
from instant_soup.models.first_token import leave_out_others
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel
from instant_soup.models.matrices import Weights, check_finite, check_weights, checked_prunable
from instant_soup.models.torchvision_cpu import declare_missing_operators
from instant_soup.sparsity.compact import apart

# The names that open_clip's `local-dir:` expects.
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@contextlib.contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Let imports of optional packages fail, if they have not been imported yet."""
    absent = [name for name in packages if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def open_clip(optional: bool = False) -> Any:
    """Import the package open_clip, also beside a CPU build of torch.

    Args:
        optional: Whether its optional parts are imported: timm's image towers, text towers and
            tokenizers of transformers. They take two thirds of the import's time.

    Returns:
        The package.
    """
    declare_missing_operators()
    if optional and "open_clip" in sys.modules and sys.modules["open_clip.timm_model"].timm is None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "open_clip"]:
            del sys.modules[name]  # imported without them before: once more, with them
    with contextlib.nullcontext() if optional else _without("timm", "transformers"):
        import open_clip as package
    if optional:
        from transformers import dynamic_module_utils

        # open_clip leaves it to transformers whether a tower's own code is run: never, unasked.
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return package


def model_config_of(folder: str | Path) -> dict:
    """Read a folder's model configuration.

    Raises:
        UserError: If it asks for something that is not part of the model: code that comes with it,
            or a name of the hub that a local folder has too.
    """
    config = read_json(Path(folder) / CONFIG)["model_cfg"]
    if (config.get("text_cfg", {}).get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise UserError(
            f"model: {folder}/{CONFIG} asks for trust_remote_code: true; allowed: false, as no "
            "code of a model's own is run here"
        )
    refuse_stand_ins(config)
    return config


def refuse_stand_ins(model_config: dict) -> None:
    """Check that no local folder has a name of the hub that open_clip would look up.

    Raises:
        UserError: If one has.
    """
    text = model_config.get("text_cfg", {})
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = text.get(key)
        if name and Path(name).exists():
            raise UserError(
                f"model: text_cfg.{key}: {name} is of the hub, but open_clip would take the folder "
                f"{Path(name).resolve()}; rename that"
            )


def needs_optional(model_config: dict) -> bool:
    """Whether a model has a tower of timm or transformers, or a tokenizer of transformers."""
    text = model_config.get("text_cfg", {})
    wanted = (text.get("hf_model_name"), text.get("hf_tokenizer_name"))
    return any(wanted) or bool(model_config.get("vision_cfg", {}).get("timm_model_name"))


class ImageClassifier(nn.Module):
    """An image tower under a frozen head. It takes images as uint8, rows × 3 × side × side.

    Weights keep the names that they have in the CLIP model ("visual.…"). `head` is a buffer,
    classes × embedding, with exp(logit_scale) already in it.
    """

    head: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, visual: nn.Module, head: torch.Tensor, mean: list[float], std: list[float]):
        super().__init__()
        self.visual = visual
        self.register_buffer("head", head)
        # Pixels to normalised values by one multiplication and one addition.
        scale = 1 / (255 * torch.tensor(std).view(3, 1, 1))
        shift = -torch.tensor(mean).view(3, 1, 1) / torch.tensor(std).view(3, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, rows × classes: cosines with the class vectors times exp(logit_scale)."""
        features = self.visual(images * self.scale + self.shift)
        if isinstance(features, tuple):  # CoCa's, with those of its patches behind
            features = features[0]
        # In fp32 whatever the precision: the scale is 100 in most models.
        with torch.autocast(images.device.type, enabled=False):
            return functional.normalize(features.float(), dim=-1) @ self.head.T


def load_pretrained(model: BaseModel) -> tuple[Any, dict, Any]:
    """Load a pre-trained CLIP model from the hub (or its local cache), or from a folder.

    Random weights never pass for pre-trained ones.

    Args:
        model: The model; a folder is in open_clip's `local-dir:` layout.

    Returns:
        The model, its configuration (as in open_clip_config.json) and its tokenizer.

    Raises:
        UserError: If it cannot be loaded.
    """
    if model.source == "local":
        where, tag = f"local-dir:{model.path}", None
        model_config = model_config_of(model.path)
        package = open_clip(needs_optional(model_config))
    else:
        where, tag = model.architecture, model.tag
        model_config = open_clip().get_model_config(where)
        package = open_clip(needs_optional(model_config))
        known = package.get_pretrained_cfg(where, tag)
        if not known:  # open_clip would take a file of this name
            raise UserError(
                f"model: {where}/{tag} cannot be loaded by open_clip: no such tag; allowed: "
                f"{' | '.join(package.list_pretrained_tags_by_model(where)) or 'none'}"
            )
        # The tag says which activation its weights were trained with; open_clip itself only warns.
        if known.get("quick_gelu", False):
            model_config["quick_gelu"] = True
        refuse_stand_ins(model_config)
    try:
        network = package.create_model(
            where,
            tag,
            force_quick_gelu=model_config.get("quick_gelu", False),
            require_pretrained=True,
            weights_only=True,
        )
        tokenizer = package.get_tokenizer(where)
    except Exception as error:  # open_clip raises a dozen kinds, by what is damaged
        first = " ".join(str(error).split())[:300]
        name = where if tag is None else f"{where}/{tag}"
        raise UserError(f"model: {name} cannot be loaded by open_clip: {first}") from None
    preprocess = {k: v for k, v in network.visual.preprocess_cfg.items() if v is not None}
    return network, {"model_cfg": model_config, "preprocess_cfg": preprocess}, tokenizer


def prepare_base(model: BaseModel, folder: Path) -> Weights:
    """Write a pre-trained CLIP model into a folder.

    Args:
        model: The model.
        folder: Gets open_clip's `local-dir:` layout: configuration, weights, and the tokenizer if
            it is one of transformers.

    Returns:
        Name → prunable weight of the image tower.
    """
    network, config, tokenizer = load_pretrained(model)
    side(config)
    if _positions(network.visual) is None:
        raise UserError("model: its image tower has no position embeddings; allowed: transformers")
    write_json(folder / CONFIG, config)
    check_finite(model.name, dict(network.named_parameters()))
    weights = {name: w.contiguous() for name, w in network.state_dict().items()}
    save_file(apart(weights), folder / WEIGHTS, metadata={"format": "pt"})
    if hasattr(tokenizer, "tokenizer"):
        tokenizer.tokenizer.save_pretrained(folder)
    found = checked_prunable(model.name, network.visual)
    return {f"visual.{name}": weight for name, weight in found.items()}


def side(config: dict) -> int:
    """The side of the square images, in pixels, that a model takes."""
    size = config["preprocess_cfg"]["size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if height != width:
        raise UserError(f"model: takes images of {height} × {width} pixels; only squares are known")
    return int(height)


def zero_shot_head(base: Path, classes: list[str], templates: list[str]) -> torch.Tensor:
    """The prompt ensemble's class vectors times exp(logit_scale).

    Each class name goes into each template and through the text tower. The normalised vectors are
    averaged over templates and normalised again, as in the paper.

    Args:
        base: The base folder.
        classes: Class names.
        templates: Prompt templates.

    Returns:
        Classes × embedding.
    """
    package = open_clip(needs_optional(model_config_of(base)))
    model = package.create_model(f"local-dir:{base}", require_pretrained=True).eval()
    tokenizer = package.get_tokenizer(f"local-dir:{base}")
    progress = len(classes) * len(templates) > 1000
    vectors = package.build_zero_shot_classifier(
        model, tokenizer, classes, templates, use_tqdm=progress
    )
    if len(torch.unique(vectors, dim=1).T) < len(classes):
        raise UserError(
            f"data.prompts: the text tower reads {model.context_length} tokens, and some classes "
            "are the same to it: shorten their names or the templates"
        )
    return (vectors.T * model.logit_scale.exp()).detach().contiguous()


def read_weights(base: Path) -> Weights:
    """All weights of a base folder, under their own names."""
    return load_file(base / WEIGHTS)


def start_weights(base: Path, head: Head) -> Weights:
    """The image tower as it came, and the frozen head."""
    visual = {n: w for n, w in read_weights(base).items() if n.startswith("visual.")}
    return {**visual, "head": zero_shot_head(base, head.classes, head.templates)}


def random_weights(base: Path, head: Head) -> Weights:
    """An image tower as open_clip initialises it, drawn from the seed, under the frozen head."""
    config = read_json(base / CONFIG)["model_cfg"]
    package = open_clip(needs_optional(config))
    torch.manual_seed(head.seed)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    visual = package.model._build_vision_tower(
        config["embed_dim"], package.CLIPVisionCfg(**vision), config.get("quick_gelu", False)
    )
    weights = {f"visual.{name}": w for name, w in visual.state_dict().items()}
    return {**weights, "head": zero_shot_head(base, head.classes, head.templates)}


def classifier(
    base: Path,
    weights: Weights,
    *,
    outputs: int = 0,
    dropout: float | str | None = None,
    freeze_embeddings: bool | None = None,
) -> ImageClassifier:
    """Build the classifier of a base folder's image tower around given weights.

    Args:
        base: The base folder.
        weights: Name → tensor; not copied.
        outputs: Not used, as the head has its outputs; this and the rest are for texts.
        dropout: Not used.
        freeze_embeddings: Not used.

    Returns:
        The network.

    Raises:
        UserError: If the weights are not exactly the architecture's.
    """
    config = read_json(base / CONFIG)
    model_config, preprocess = config["model_cfg"], config["preprocess_cfg"]
    package = open_clip(needs_optional({"vision_cfg": model_config["vision_cfg"]}))
    vision = package.CLIPVisionCfg(**{**model_config["vision_cfg"], "timm_model_pretrained": False})
    # No time goes into random weights that are replaced at once; but timm's towers also have
    # buffers that no checkpoint holds.
    timm = bool(model_config["vision_cfg"].get("timm_model_name"))
    with contextlib.nullcontext() if timm else torch.device("meta"):
        visual = package.model._build_vision_tower(
            model_config["embed_dim"], vision, model_config.get("quick_gelu", False)
        )
        head = torch.empty(len(weights["head"]), model_config["embed_dim"])
    model = ImageClassifier(visual, head, preprocess["mean"], preprocess["std"])
    check_weights(base, model, weights)
    model.load_state_dict(weights, assign=True)
    if _reads_first_token(visual):
        # The block adds what comes of it to every token; of these only the first is read.
        leave_out_others(visual.transformer.resblocks[-1].ln_2)
    return model


def _reads_first_token(visual: Any) -> bool:
    """Whether an image tower is a plain transformer whose output is that of its class token."""
    kinds = open_clip().transformer
    return (
        isinstance(visual, kinds.VisionTransformer)
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.output_tokens
        and isinstance(visual.transformer.resblocks[-1], kinds.ResidualAttentionBlock)
    )


def _positions(visual: nn.Module) -> torch.Tensor | None:
    """A transformer's position embeddings; an attention pool behind convolutions has others."""
    for name, parameter in visual.named_parameters():
        pool = "attnpool" in name or "attn_pool" in name
        if name.endswith(("positional_embedding", "pos_embed")) and not pool:
            return parameter
    return None
