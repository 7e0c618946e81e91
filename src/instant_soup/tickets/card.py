"""The model card of an exported ticket: README.md with the front matter that the hub reads."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from instant_soup.config.fields import settings_of_variant
from instant_soup.data.datasets import Dataset
from instant_soup.files import read_json
from instant_soup.methods import registry
from instant_soup.models import bert, clip
from instant_soup.models.known import BaseModel
from instant_soup.models.ticket import TICKET
from instant_soup.reports.render import in_markdown
from instant_soup.reports.results import label, percent
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask

# What the hub calls our metrics and libraries.
METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "perplexity": "perplexity",
}
USUAL_COLUMNS = {"text": "sentence", "image": "image", "label": "label"}
LIBRARY = {"bert": "transformers", "clip": "open_clip", "causal": "transformers"}
BLOCKS = {"bert": "encoder's", "clip": "image tower's", "causal": "language model's"}
PIPELINE = {
    **{"bert": "text-classification", "clip": "zero-shot-image-classification"},
    "causal": "text-generation",
}

USE_TEXTS = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
batch = tokenizer({inputs}, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
print({answer})"""
USE_PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
batch = tokenizer("The film", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**batch, max_new_tokens=20, do_sample=False)[0]))"""
USE_IMAGES = """\
import json

import open_clip
import torch
from PIL import Image, ImageOps

folder = "."  # this folder
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
ticket = json.load(open(f"{folder}/ticket.json"))
head = open_clip.build_zero_shot_classifier(
    model.eval(), tokenizer, ticket["classes"], ticket["templates"]
)
image = ImageOps.exif_transpose(Image.open("image.png"))  # turned as in training
image = preprocess(image).unsqueeze(0)
with torch.no_grad():
    logits = model.logit_scale.exp() * model.encode_image(image, normalize=True) @ head
print(ticket["classes"][logits.argmax().item()])"""
FILES = [
    ("mask.safetensors", "the mask, one bit for every prunable weight"),
    ("compact.safetensors", "the same weights without their zeros (`instant_soup.compact.load`)"),
    ("ticket.json", "class names, prompts, and what a test needs to know"),
]


def card(result: dict[str, Any], data: Dataset, base: BaseModel, mask: Mask, dtype: str) -> str:
    """Write the text of a model card.

    Args:
        result: The row's result, as the stage `evaluate` writes it.
        data: What the network was trained on.
        base: The model that it was made from.
        mask: Name → boolean tensor; True: kept.
        dtype: Type of the weights, fp32 or bf16.

    Returns:
        Markdown, with the front matter that the hub reads.
    """
    family = result["family"]
    model, dataset = in_markdown(result["model"]), in_markdown(result["dataset"])
    kept, total = masks.count(mask)
    pruned = f"pruned to {percent(round(masks.sparsity(mask), 6))} sparsity and " * (kept < total)
    layers = [(e["name"], f"{1 - e['sparsity']:.4f}") for e in masks.sparsity_by_layer(mask)]
    scores = [(name, f"{value:.4f}") for name, value in result["test"].items()]
    names = {"clip": clip.WEIGHTS, "causal": "model*.safetensors"}
    weights = names.get(family, bert.WEIGHTS)
    files = [(weights, f"the weights in {dtype} under their usual names, with exact zeros"), *FILES]
    parts = [
        f"---\n{yaml.safe_dump(front_matter(result, data, base), sort_keys=False)}---",
        f"# {label(result['method'])}: {model} on {dataset}",
        f"{model}, {pruned}fine-tuned on {dataset}, out of a reproduction of [Instant Soup Pruning]"
        "(https://arxiv.org/abs/2306.10460).",
        f"## Use\n\n```python\n{_use(family, data)}\n```",
        f"## Test\n\n{_table('metric', 'value', scores)}",
        f"One run, seed {result['seed']}, precision {result['precision']}, at the end of training.",
        f"## Sparsity\n\n{total - kept:,} of {total:,} prunable weights, the linear maps of "
        f"the {BLOCKS[family]} blocks, are zero.\n\n{_table('layer', 'density', layers)}",
        f"## Cost\n\n{_table('what', 'value', _cost(result['cost']))}",
        f"## Files\n\n{_table('file', 'what', files)}",
        f"## Regenerate\n\n{regenerate(result, data, base, dtype)}",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(result: dict[str, Any], data: Dataset, base: BaseModel) -> dict[str, Any]:
    """What the hub reads of a card. Base and dataset are named if they are on the hub."""
    facts: dict[str, Any] = {}
    if base.source == "hub":
        facts["base_model"] = base.repo
    tested = {"type": result["dataset"], "name": result["dataset"]}
    if data.source == "hub":
        repository, configuration = data.hub
        facts["datasets"] = [repository]
        tested |= {"type": repository, "config": configuration or "default", "split": data.test}
    return _for_the_hub(result, facts, tested)


def _for_the_hub(
    result: dict[str, Any], facts: dict[str, Any], tested: dict[str, str]
) -> dict[str, Any]:
    """The front matter of a result; `facts` name what is on the hub, `tested` is the dataset."""
    task, dataset = PIPELINE[result["family"]], result["dataset"]
    scores = [{"type": METRICS[name], "value": value} for name, value in result["test"].items()]
    entry = {"task": {"type": task}, "dataset": tested, "metrics": scores}
    name = "-".join([result["method"], result["model"], dataset]).replace("/", "-")
    return {
        "library_name": LIBRARY[result["family"]],
        "pipeline_tag": task,
        **facts,
        "metrics": [METRICS[result["metric"]]],
        "tags": ["pruning", "sparse", "lottery-ticket", "instant-soup"],
        "model-index": [{"name": name, "results": [entry]}],
    }


def write_one_shot(folder: Path) -> None:
    """Write the model card of a language model pruned without training, by its ticket.json."""
    ticket = read_json(folder / TICKET)
    model, dataset = in_markdown(ticket["model"]), in_markdown(ticket["dataset"])
    kind = f"{ticket['pattern']} pattern" if ticket["pattern"] else "sparsity"
    share = percent(round(ticket["sparsity"], 6))
    base = ticket["model"].removeprefix("causal:")
    on_hub = {} if base.startswith("local:") else {"base_model": base}
    front = _for_the_hub(ticket, on_hub, {"type": ticket["dataset"], "name": ticket["dataset"]})
    scores = [(name, f"{value:.4f}") for name, value in ticket["test"].items()]
    blocks = ticket["calibration_blocks"]
    looked = f", by {blocks} blocks of its training texts" if blocks else ""
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {ticket['method']}, {share}: {model}",
        f"{model}, its blocks' matrices pruned at once to {share} ({kind}), without training, by "
        f"`instant-soup oneshot` ({ticket['method']}{looked}). "
        "Pruned weights are exact zeros.",
        f"## Use\n\n```python\n{USE_PLAIN}\n```",
        f"## Test\n\n{_table('metric', 'value', scores)}",
        f"On the test split of {dataset}, in blocks of {ticket['max_length']:,} tokens, in fp32.",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")


def regenerate(result: dict[str, Any], data: Dataset, base: BaseModel, dtype: str) -> str:
    """The commands that make this ticket again, and notes on what they leave open."""
    commit = result["code_version"]
    known = [] if commit == "unknown" else [f"git checkout {commit.rstrip('+')}"]
    keys = changes(result, data, base, dtype)
    words = [f"-S {shlex.quote(f'{key}={value}')}" for key, value in keys.items()]
    lines = "\n".join([*known, " \\\n  ".join(["dvc exp run", *words])])
    parts = [f"In the repository of the code:\n\n```bash\n{lines}\n```"]
    if not known:
        parts.append("The code's commit is not known.")
    elif commit.endswith("+"):
        parts.append("The code differed from that commit when this ran.")
    own = [
        n for n in (result["model"], result["dataset"]) if "local" in n.replace("@", ":").split(":")
    ]
    if own:
        names = " and ".join(map(in_markdown, own))
        parts.append(f"{names}: not in the repository; give the folder's path.")
    return "\n\n".join(parts)


def changes(result: dict[str, Any], data: Dataset, base: BaseModel, dtype: str) -> dict[str, Any]:
    """The keys of params.yaml that make this ticket, with their values as text."""
    method, model, dataset = result["method"], result["model"], result["dataset"]
    found = {"model": model, "dataset": dataset.removesuffix("@local")}
    if dataset.endswith("@local"):
        found["data.path"] = "FOLDER"
    if dataset.startswith("local:"):  # the columns, where they are not those looked for
        plain = ["text"] if data.kind == "language" else None
        for key, usual in USUAL_COLUMNS.items():
            column = getattr(data, key)
            if column not in ("", [], usual, [usual]) and column != plain:
                several = isinstance(column, list)
                found[f"data.{key}"] = f"[{','.join(column)}]" if several else column
    found |= {"preset": result["preset"], "seed": result["seed"]}
    if result["target_sparsity"]:
        found["sparsity"] = result["target_sparsity"]
    if method in registry.selectable():
        needed = [name for name in registry.method_named(method).needs if name != registry.ISP]
        found["methods"] = f"[{','.join([*needed, method])}]"
    parts = (part.partition("=") for part in settings_of_variant(result["variant"]))
    own = {key: value for key, _, value in parts}
    return found | own | {"exports": f"[{method}]", "export_dtype": dtype}


def _use(family: str, data: Dataset) -> str:
    """A snippet that runs the ticket with the stock library."""
    if family != "bert":
        return {"clip": USE_IMAGES, "causal": USE_PLAIN}[family]
    inputs = ", ".join(f"[{json.dumps(f'{text} …', ensure_ascii=False)}]" for text in data.text)
    answer = "model.config.id2label[logits.argmax().item()]"
    regression = data.kind == "regression"
    return USE_TEXTS.format(inputs=inputs, answer="logits.item()" if regression else answer)


def _cost(cost: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("training steps", f"{cost['steps']:,}"),
        ("search steps beside them", f"{cost['search_steps']:,}"),
        ("training FLOPs, dense-equivalent, search included", f"{cost['flops']:.3g}"),
        ("the same without pruned weights' multiply-adds", f"{cost['sparse_flops']:.3g}"),
        ("wall seconds", f"{cost['seconds']:.1f}"),
    ]


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> str:
    lines = [(left, right), ("---", "---"), *rows]
    return "\n".join(f"| {a} | {b} |" for a, b in lines)
