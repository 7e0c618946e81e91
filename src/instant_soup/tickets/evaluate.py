"""Evaluate an exported ticket on a dataset's test split, with the pipeline's data and metrics."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from instant_soup.config.sections import Data
from instant_soup.data import batches
from instant_soup.data.batches import Split
from instant_soup.data.datasets import Dataset
from instant_soup.data.images import load_files
from instant_soup.data.local import from_here, has_columns, resolve_data
from instant_soup.data.splits import read_train_and_test
from instant_soup.errors import UserError
from instant_soup.files import path_of, read_json
from instant_soup.models import base as models
from instant_soup.models import bert, causal, clip, encoding
from instant_soup.models.head import Head
from instant_soup.models.known import weight_files
from instant_soup.models.memory import WEIGHT
from instant_soup.models.ticket import FORMAT, TICKET
from instant_soup.tickets.weights import header
from instant_soup.training import loop, metrics

# What a ticket has to say for a test of it, and of what kind it is.
NEEDED: dict[str, Any] = {
    **dict.fromkeys(("family", "kind", "dataset", "method"), str),
    **{"classes": list, "columns": list | None, "label": str | None, "test_rows": int},
}
# How many columns of a dataset it reads at most, in words, too.
COLUMNS = {
    "bert": (2, "one or two, of texts"),
    "clip": (1, "one, of images"),
    "causal": (1, "one, of texts"),
}
NEEDED_BY: dict[str, dict[str, Any]] = {
    "bert": {"max_length": int},
    "clip": {"templates": list},
    "causal": {"max_length": int},
}


def evaluate(
    folder: str | Path,
    dataset: str,
    columns: list[str] | None = None,
    label: str | None = None,
    precision: str = "auto",
    path: Path | None = None,
) -> dict[str, Any]:
    """Score a ticket on the test split of a dataset.

    Args:
        folder: The exported folder.
        dataset: A name of data/datasets.py, or `local:FOLDER`.
        columns: The text columns or the image column, if their names cannot be guessed.
        label: The label column, if its name cannot be guessed.
        precision: "fp32", "bf16", or "auto": bf16 where the hardware multiplies it.
        path: A local copy of a dataset of the hub, as `data.path` in params.yaml.

    Returns:
        Ticket, method, dataset, number of test rows, precision, and `metrics` as fractions.

    Raises:
        UserError: If dataset and ticket do not go together, or either cannot be read.
    """
    folder = Path(folder)
    ticket = read_ticket(folder)
    data = _dataset(folder, ticket, dataset, columns, label, path)
    _, table = read_train_and_test(data)
    if not len(table):
        raise UserError(f"dataset: {dataset}: too few rows to cut a test split from")
    if ticket["family"] == "clip":
        model = _image_classifier(folder, data.labels, data.templates)
        split: Split = encoding.encode_images(folder, load_files(table), "test")
    elif ticket["family"] == "causal":
        model = causal.load_pretrained(folder, WEIGHT)
        length = ticket["max_length"]
        split = encoding.encode_blocks(folder, table, data.text, length, "test", TICKET)
    else:
        model = _text_classifier(folder, max(1, len(data.labels)))
        split = encoding.encode_texts(folder, table, data.text, ticket["max_length"])
    where, precision = loop.device(), loop.resolve_precision(precision)
    split = batches.to_device(split, where)
    scores = metrics.scores(*loop.predict(model.to(where), split, precision))
    described = {"ticket": str(folder), "method": ticket["method"], "dataset": data.name}
    return {**described, "rows": len(split), "precision": precision, "metrics": scores}


def read_ticket(folder: Path) -> dict[str, Any]:
    """Read what an exported folder says of itself.

    Args:
        folder: The exported folder.

    Returns:
        The contents of ticket.json.

    Raises:
        UserError: If the folder is no exported ticket, or a damaged one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / TICKET).exists():
        raise UserError(
            f"{folder}: not an exported ticket (no {TICKET} in it); allowed: a folder of "
            "`instant-soup export`, `instant-soup oneshot … --to` or `Pruned.save`"
        )
    ticket = read_json(folder / TICKET)
    if not isinstance(ticket, dict) or ticket.get("format") != FORMAT:
        raise UserError(f"{folder / TICKET}: not of the format {FORMAT!r}")
    wanted = NEEDED | NEEDED_BY.get(str(ticket.get("family")), {})
    for key, kinds in wanted.items():
        if not isinstance(ticket.get(key), kinds):
            raise UserError(f"{folder / TICKET}: damaged ({key}: {ticket.get(key)!r})")
    if ticket["family"] not in models.FAMILIES:
        raise UserError(
            f"{folder}: a {ticket.get('model')}, which cannot be built for evaluation; allowed: a "
            "text classifier or language model saved with its tokenizer, or a model of open_clip"
        )
    weights = models.family_named(ticket["family"]).WEIGHTS
    files = weight_files(folder) if ticket["family"] == "causal" else []
    header((files or [folder / weights])[0])  # which says what is wrong with it
    return ticket


def _dataset(
    folder: Path,
    ticket: dict[str, Any],
    dataset: str,
    columns: list[str] | None,
    label: str | None,
    path: Path | None,
) -> Dataset:
    """A dataset as `plan` resolves it, with the ticket's class names.

    An image classifier on another known dataset takes that one's classes and prompts: zero-shot.
    """
    images, local = ticket["family"] == "clip", dataset.startswith("local:")
    found = resolve_data(
        from_here(dataset),
        ticket["family"],
        _data_section(ticket, dataset, columns, label, path),
        model=str(folder),
        classes=ticket["classes"] or None,  # saved without names, it takes the folder's
    )
    if found.kind != ticket["kind"]:
        raise UserError(f"dataset: {dataset} is {found.kind}, the ticket's is {ticket['kind']}")
    if not images and not local and found.labels != ticket["classes"]:
        theirs, ours = (", ".join(names[:5]) for names in (found.labels, ticket["classes"]))
        raise UserError(f"dataset: {dataset} has the classes {theirs}; the ticket's are {ours}")
    same = found.name.removesuffix("@local") == ticket["dataset"].removesuffix("@local")
    own = local or same
    if images and not own:
        return found
    templates = ticket["templates"] if images else []
    return replace(found, labels=ticket["classes"] or found.labels, templates=templates)


def _data_section(
    ticket: dict[str, Any],
    dataset: str,
    columns: list[str] | None,
    label: str | None,
    path: Path | None,
) -> Data:
    """The section `data` that params.yaml would have; a folder's columns are first the ticket's."""
    family, local = ticket["family"], dataset.startswith("local:")
    images = family == "clip"
    most, allowed = COLUMNS[family]
    if columns and len(columns) > most:
        raise UserError(f"columns: {' '.join(columns)}: too many; allowed: {allowed}")
    if label and family == "causal":
        raise UserError(f"label: {label}: plain text has no labels; allowed: none")
    own = local and ticket["dataset"].startswith("local:")
    if own and has_columns(from_here(dataset), family):
        label = label or ticket.get("label")
        columns = columns or (None if images else ticket.get("columns"))
    return Data(
        path=None if path is None else str(path_of(path).resolve()),
        kind=ticket["kind"] if local and family == "bert" else None,
        text=None if images else columns,
        image=columns[0] if images and columns else None,
        label=label,
        # Where the test split is cut from other rows, it is cut as for the ticket.
        test_rows=ticket["test_rows"],
    )


def _text_classifier(folder: Path, outputs: int) -> nn.Module:
    weights = models.base_weights(folder)
    return bert.classifier(folder, weights, outputs=outputs, freeze_embeddings=True).float()


def _image_classifier(folder: Path, classes: list[str], templates: list[str]) -> nn.Module:
    try:
        weights = clip.start_weights(folder, Head(classes=classes, templates=templates))
        return clip.classifier(folder, weights).float()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: cannot be loaded by open_clip: {reason}") from None


def show(found: dict[str, Any]) -> None:
    """Print a ticket's metrics."""
    rows = "blocks of test text" if "perplexity" in found["metrics"] else "test rows"
    print(f"{found['ticket']} on {found['dataset']}, {found['rows']:,} {rows}")
    for name, value in found["metrics"].items():
        print(f"{name:<11} {value:.4f}")
