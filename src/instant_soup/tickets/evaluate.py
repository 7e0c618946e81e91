"""An exported ticket on the test split of a dataset, with the pipeline's own data and metrics."""

from pathlib import Path
from typing import Any

from torch import nn

from instant_soup.data import batches
from instant_soup.data.batches import Split
from instant_soup.data.images import load_files
from instant_soup.data.local import resolve_data
from instant_soup.data.splits import read_train_and_test
from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.models import base as models
from instant_soup.models import bert, clip, encoding
from instant_soup.models.ticket import FORMAT, TICKET
from instant_soup.tickets.weights import header
from instant_soup.training import loop, metrics


def evaluate(
    folder: str | Path,
    dataset: str,
    columns: list[str] | None = None,
    label: str | None = None,
    precision: str = "auto",
    path: Path | None = None,
) -> dict[str, Any]:
    """A ticket's metrics on a dataset of data/datasets.py or `local:FOLDER`.

    `columns`, `label`: the text or image columns, and the label column, of a folder whose names
    tell nothing. `path`: a local copy of a dataset of the hub, as `data.path` in params.yaml.
    UserError when dataset and ticket do not go together.
    """
    folder = Path(folder)
    ticket = read_ticket(folder)
    facts = _facts(folder, ticket, dataset, columns, label, path)
    _, table = read_train_and_test(facts)
    if not len(table):
        raise UserError(f"dataset: {dataset}: too few rows to cut a test split from")
    classes = facts["labels"]
    if ticket["family"] == "clip":
        model = _image_classifier(folder, classes, facts["templates"])
        split: Split = encoding.encode_images(folder, load_files(table), "test")
    else:
        model = _text_classifier(folder, max(1, len(classes)))
        split = encoding.encode_texts(folder, table, facts["text"], ticket["max_length"])
    where, precision = loop.device(), loop.resolve_precision(precision)
    split = batches.to_device(split, where)
    scores = metrics.scores(*loop.predict(model.to(where), split, precision))
    described = {"ticket": str(folder), "method": ticket["method"], "dataset": facts["name"]}
    return {**described, "rows": len(split), "precision": precision, "metrics": scores}


def read_ticket(folder: Path) -> dict[str, Any]:
    """What an exported folder says of itself; UserError when it is none."""
    if not (folder / TICKET).exists():
        raise UserError(f"{folder}: not an exported ticket (no {TICKET} in it)")
    ticket = read_json(folder / TICKET)
    if not isinstance(ticket, dict) or ticket.get("format") != FORMAT:
        raise UserError(f"{folder / TICKET}: not of the format {FORMAT!r}")
    if ticket["family"] not in models.FAMILIES:
        raise UserError(
            f"{folder}: a {ticket['model']}, which it cannot build to evaluate it; allowed: a text "
            "classifier saved with its tokenizer, or a model of open_clip"
        )
    header(folder / models.family(folder).WEIGHTS)  # which says what is wrong with it
    return ticket


def _facts(
    folder: Path,
    ticket: dict[str, Any],
    dataset: str,
    columns: list[str] | None,
    label: str | None,
    path: Path | None,
) -> dict[str, Any]:
    """The data settings of a dataset, as `plan` resolves them, with the ticket's class names.

    An image classifier on another known dataset takes that one's classes and prompts: zero-shot.
    """
    images, rest = ticket["family"] == "clip", dataset.removeprefix("local:")
    if local := rest not in ("", dataset):
        dataset = f"local:{Path(rest).expanduser().resolve()}"  # from here, not from a repository
    facts = resolve_data(
        {
            "dataset": dataset,
            "family": ticket["family"],
            "model": folder,
            "data": _data_section(ticket, local, columns, label, path),
        }
    )
    if facts["kind"] != ticket["kind"]:
        raise UserError(f"dataset: {dataset} is {facts['kind']}, the ticket's is {ticket['kind']}")
    if not images and not local and facts["labels"] != ticket["classes"]:
        theirs, ours = (", ".join(names[:5]) for names in (facts["labels"], ticket["classes"]))
        raise UserError(f"dataset: {dataset} has the classes {theirs}; the ticket's are {ours}")
    same = facts["name"].removesuffix("@local") == ticket["dataset"].removesuffix("@local")
    own = local or same
    if images and not own:
        return facts
    prompts = {"templates": ticket["templates"]} if images else {}
    return {**facts, "labels": ticket["classes"], **prompts}


def _data_section(
    ticket: dict[str, Any],
    local: bool,
    columns: list[str] | None,
    label: str | None,
    path: Path | None,
) -> dict[str, Any]:
    """The section `data` that params.yaml would have; a folder's columns are first the ticket's."""
    images = ticket["family"] == "clip"
    if columns and len(columns) > (1 if images else 2):
        allowed = "one, of images" if images else "one or two, of texts"
        raise UserError(f"columns: {' '.join(columns)}: too many; allowed: {allowed}")
    if local and ticket["dataset"].startswith("local:"):
        label = label or ticket["label"]
        columns = columns or (None if images else ticket["columns"])
    section: dict[str, Any] = {"label": label}
    section["path"] = None if path is None else str(path.expanduser().resolve())
    if images:
        section["image"] = columns[0] if columns else None
        section["classes"] = ticket["classes"]
    else:
        section["text"] = columns
        section["kind"] = "regression" if local and ticket["kind"] == "regression" else None
    # Where the test split is cut from other rows, it is cut as for the ticket.
    rows = dict.fromkeys(("train_rows", "validation_rows", "test_rows"), ticket["test_rows"])
    return section | rows


def _text_classifier(folder: Path, outputs: int) -> nn.Module:
    settings = {"outputs": outputs, "dropout": "model", "freeze_embeddings": True}
    return bert.classifier(folder, models.base_weights(folder), settings).float()


def _image_classifier(folder: Path, classes: list[str], templates: list[str]) -> nn.Module:
    weights = clip.start_weights(folder, {"classes": classes, "templates": templates})
    return clip.classifier(folder, weights, {}).float()


def show(found: dict[str, Any]) -> None:
    """Print a ticket's metrics."""
    print(f"{found['ticket']} on {found['dataset']}, {found['rows']:,} test rows")
    for name, value in found["metrics"].items():
        print(f"{name:<10}{value:.4f}")
