"""A finished network as a folder to take away, which transformers or open_clip loads as it is.

The folder has weights under their usual names with exact zeros, configuration, tokenizer, label
names and preprocessing. Beside them lie the mask, a compact file, what a test needs to know
(ticket.json) and a model card. All of it is read from the workspace of a run.
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from instant_soup.data.datasets import Dataset
from instant_soup.errors import UserError
from instant_soup.files import new_folder, read_json, write_json
from instant_soup.models import base as models
from instant_soup.models import bert, causal, clip, encoding, hugging_face
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel
from instant_soup.models.ticket import FORMAT, MASK, write_ticket
from instant_soup.pipeline import workspace
from instant_soup.pipeline.stage_files import PLAN, EncodeStage, ExportStage
from instant_soup.pipeline.workspace import BASE, prunable_shapes
from instant_soup.reports import ledger
from instant_soup.sparsity import compact, masks
from instant_soup.tickets import card
from instant_soup.training.state import Weights, load_state

RETRAINED, RESULTS = Path("models/retrained"), Path("reports/results")
EXPORTED = Path("models/exported")
# What ticket.json has of a result.
OF_RESULT = (*ledger.KEY, "family", "metric", "test", "precision", "sparsity", "code_version")
# How images are prepared here, whatever a base model asks for (docs/data.md).
PREPARED = {"interpolation": "bicubic", "resize_mode": "shortest"}


def export(method: str, folder: str | Path, dtype: str | None = None) -> dict[str, Any]:
    """Write a method's finished network into a folder.

    Args:
        method: A row of the tables.
        folder: The new folder.
        dtype: Type of the weights and the compact file, fp32 or bf16; None: the plan's.

    Returns:
        The contents of ticket.json.

    Raises:
        UserError: If the workspace has no finished run of the method, or what it is of has changed.
    """
    result = finished(method)
    dtype = dtype or ExportStage.read(PLAN / "export.yaml").dtype
    data, base = Dataset.read(PLAN / "data.yaml"), BaseModel.read(PLAN / "base.yaml")
    check_plan(result, data, base)
    mask = masks.load(RETRAINED / method / MASK, prunable_shapes())
    trained = load_state(RETRAINED / method / "state", moments=False).weights
    with new_folder(folder) as unfinished:
        weights, task = WRITERS[result["family"]](unfinished, trained, data, dtype)
        inputs_at = models.inputs_in_files(BASE, mask)
        weights, mask = (models.as_in_files(BASE, tensors) for tensors in (weights, mask))
        weights = compact.apart(
            {n: w.contiguous() for n, w in compact.cast(weights, dtype).items()}
        )
        if (family := models.family(BASE)) is causal:
            causal.write_weights(unfinished, weights)
        else:
            save_file(weights, unfinished / family.WEIGHTS, metadata={"format": "pt"})
        ticket = {**_identity(result, data), **task, "dtype": dtype}
        write_ticket(unfinished, weights, mask, ticket, inputs_at)
        (unfinished / "README.md").write_text(card.card(result, data, base, mask, dtype))
    return ticket


def finished(method: str) -> dict[str, Any]:
    """The result of a method's run in this workspace.

    Raises:
        UserError: If the run is not finished, or the result is of another run.
    """
    if not (RETRAINED / method / "run.json").exists():
        done = sorted(path.parent.name for path in RETRAINED.glob("*/run.json"))
        have = f"finished are {', '.join(done)}" if done else "nothing is finished in this folder"
        raise UserError(f"no finished run of {method!r} here; {have} (`dvc repro` runs the rest)")
    (result,) = ledger.read_results(RESULTS, [method])
    own = read_json(RETRAINED / method / "run.json")["cost"]
    # No two runs take the same wall time; what is missing is of an older version of this code.
    if result["cost"]["seconds"] != own["seconds"] or not result.keys() >= set(OF_RESULT):
        raise UserError(f"{RESULTS / method}.json is not of this run of {method}: `dvc repro`")
    return result


def check_plan(result: dict[str, Any], data: Dataset, base: BaseModel) -> None:
    """Check that a result's run is of the data and the base model that are planned and lie here.

    After an interrupted `dvc repro` the plan, the data or the base model may be newer.

    Raises:
        UserError: If one is; it names what differs first.
    """
    method, info = result["method"], workspace.read_info()
    encoding = EncodeStage.read(PLAN / "encode.yaml")
    planned = {"model": base.name, "dataset": data.name, **encoding.contents()}
    planned |= {"kind": data.kind, "labels": data.labels, "text": data.text or None}
    planned["templates"] = data.templates
    here = {**info, "model": result["model"], "dataset": result["dataset"]}
    own = RETRAINED / method / workspace.INPUTS
    newer = [f"{PLAN} ({key})" for key in planned if planned[key] != here.get(key)]
    if not own.exists() or read_json(own) != workspace.inputs_digest():
        newer.append(f"{workspace.ENCODED} or {BASE}")
    elif result["base"] != models.digest(models.pretrained_prunable(BASE)):
        newer.append(str(BASE))
    if newer:
        raise UserError(f"{newer[0]}: not that of the finished run of {method}: `dvc repro`")


def _identity(result: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """What ticket.json says whatever the family."""
    return {
        "format": FORMAT,
        **{key: result[key] for key in OF_RESULT},
        "kind": data.kind,
        "label": data.label,
        "test_rows": data.test_rows,
        "columns": [data.image] if data.image else data.text,
        "classes": data.labels,
    }


def _write_texts(
    folder: Path, trained: Weights, data: Dataset, dtype: str
) -> tuple[Weights, dict[str, Any]]:
    """Configuration and tokenizer; the weights, and what ticket.json says of texts."""
    auto = hugging_face.transformers_auto()
    classes = data.labels
    config = bert.configuration(BASE, max(1, len(classes)))
    config.architectures = [auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)].__name__]
    config.dtype = compact.DTYPES[dtype]
    config.problem_type = "single_label_classification" if classes else "regression"
    if classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    config.save_pretrained(folder)
    tokenizer = hugging_face.load_tokenizer(BASE)
    # So that truncation=True cuts where training and test did.
    max_length = EncodeStage.read(PLAN / "encode.yaml").max_length
    assert max_length is not None  # the plan has it for texts
    length = encoding.longest(BASE, max_length)
    tokenizer.model_max_length = length
    for how_it_was_read in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how_it_was_read, None)
    tokenizer.save_pretrained(folder)
    return trained, {"max_length": length}


def _write_images(
    folder: Path, trained: Weights, data: Dataset, dtype: str
) -> tuple[Weights, dict[str, Any]]:
    """Configuration and tokenizer; the whole CLIP model, with its image tower as trained.

    The text tower is as it was, so that the prompts in ticket.json make the classifier's head.
    """
    for file in BASE.iterdir():
        if file.suffix != ".safetensors" and file.name != "prunable.json":
            shutil.copyfile(file, folder / file.name)
    config = read_json(BASE / clip.CONFIG)
    config["preprocess_cfg"] |= PREPARED
    write_json(folder / clip.CONFIG, config)
    whole = {name: trained.get(name, w) for name, w in models.base_weights(BASE).items()}
    return whole, {"templates": Head.read(PLAN / "start.yaml").templates}


def _write_plain(
    folder: Path, trained: Weights, data: Dataset, dtype: str
) -> tuple[Weights, dict[str, Any]]:
    """Configuration and tokenizer; the whole language model, each weight once.

    A head that is the table of embeddings is left out, as loaders tie it themselves.
    """
    for file in BASE.iterdir():
        if file.suffix != ".safetensors" and file.name != "prunable.json":
            shutil.copyfile(file, folder / file.name)
    config, auto = causal.configuration(BASE), hugging_face.transformers_auto()
    config.architectures = [auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.dtype, config.use_cache = compact.DTYPES[dtype], True
    config.save_pretrained(folder)
    twice = causal.tied(causal.classifier(BASE, trained))
    own = {name: w for name, w in trained.items() if name not in twice}
    max_length = EncodeStage.read(PLAN / "encode.yaml").max_length
    return own, {"max_length": encoding.longest(BASE, max_length)}


WRITERS = {"bert": _write_texts, "clip": _write_images, "causal": _write_plain}
