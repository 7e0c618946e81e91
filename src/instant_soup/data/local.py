"""Where the dataset comes from: packaged, hub or local, resolved and checked for the plan.

Nothing is downloaded. What params.yaml names wrongly is refused in one line with the key and what
is allowed.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from instant_soup.config.sections import Data
from instant_soup.data import folders, images, plain, texts
from instant_soup.data.class_prompts import resolve_prompts
from instant_soup.data.datasets import DATASETS, Dataset
from instant_soup.errors import UserError
from instant_soup.files import digest, path_of, resolve_path

READS = {"bert": "texts", "clip": "images", "causal": "plain text"}
ONLY_LOCAL = ("kind", "text", "image", "label", "flip")  # data keys for a dataset of one's own
ONE_TEMPLATE = ["a photo of a {}."]  # of images whose prompts nothing tells


class Fits(NamedTuple):
    """The check that the model reads what the dataset holds."""

    name: str
    family: str
    model: str

    def check(self, holds: str) -> None:
        """UserError when the model's family does not read what a dataset holds."""
        if holds == READS[self.family]:
            return
        raise UserError(
            f"params.yaml: dataset: {self.name} holds {holds}, "
            f"but model: {self.model} reads {READS[self.family]}; allowed for it: {self.allowed()}"
        )

    def allowed(self) -> str:
        """The datasets that the model's family reads."""
        fit = [name for name, task in DATASETS.items() if task.holds == READS[self.family]]
        return " | ".join([*fit, "local:FOLDER"])


def from_here(dataset: str) -> str:
    """A command's dataset, with its local folder found from where the user is, not in a project."""
    rest = dataset.removeprefix("local:")
    if rest in ("", dataset):
        return dataset
    return f"local:{path_of(rest, 'dataset').resolve()}"


def has_columns(dataset: str, family: str) -> bool:
    """Whether local:FOLDER holds tables: neither text files nor class folders have columns."""
    rest = dataset.removeprefix("local:")
    if READS[family] == "texts" or not rest:  # texts are read from tables only
        return True
    folder = resolve_path(rest, "dataset")
    if READS[family] == "plain text":
        return plain.first_table(folder) is not None
    train, _ = folders.split_paths(folder, "test")
    return not train[0].is_dir()


def resolve_data(
    name: str, family: str, data: Data, *, model: str = "", classes: list[str] | None = None
) -> Dataset:
    """Resolve and check a dataset: its source, columns, kind, labels, metric and row numbers.

    Args:
        name: The dataset's name in params.yaml.
        family: The model's family, which says whether the data must be texts or images.
        data: The section `data` of params.yaml.
        model: What a message calls the model.
        classes: Class names of a ticket that is evaluated, for a folder that has none itself.

    Returns:
        The dataset.

    Raises:
        UserError: If it cannot be read, or does not fit.
    """
    fits = Fits(name, family, model or family)
    dataset = _known(name, data, fits) if name in DATASETS else _own(name, data, fits, classes)
    return replace(
        dataset,
        train_rows=data.train_rows,
        validation_rows=data.validation_rows,
        validation_share=data.validation_share,
        test_rows=data.test_rows,
    )


def _known(name: str, data: Data, fits: Fits) -> Dataset:
    """A dataset of datasets.py, or a local copy of one."""
    unused = [key for key in ONLY_LOCAL if getattr(data, key) is not None]
    if unused:
        raise UserError(
            f"params.yaml: data.{unused[0]}: only for dataset: local:FOLDER; {name} has its own"
        )
    task = DATASETS[name]
    fits.check(task.holds)
    dataset = Dataset(
        name=name,
        source=task.source,
        kind=task.kind,
        text=list(task.text),
        labels=list(task.labels),
        metric=task.metric,
        hub=list(task.hub),
        test=task.test,
        image=task.image,
        label=task.label,
        flip=task.flip,
    )
    if task.image and (prompts := resolve_prompts(data.prompts, task.prompts)):
        dataset = replace(dataset, labels=prompts.classes, templates=prompts.templates)
    if not data.path:
        return dataset
    if task.source == "packaged":
        raise UserError(f"params.yaml: data.path: {name} is packaged; name no folder")
    # Perhaps a sample, so its results are not the dataset's.
    return _in_folder(resolve_path(data.path, "data.path"), f"{name}@local", dataset)


def _own(name: str, data: Data, fits: Fits, classes: list[str] | None) -> Dataset:
    """A dataset of one's own, local:FOLDER."""
    kind, _, rest = name.partition(":")
    if kind != "local" or not rest:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        if not near and not rest and path_of(name, "dataset").is_dir():
            near = [f"local:{name}"]
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"params.yaml: dataset: unknown {name!r}; {hint}allowed: {fits.allowed()}")
    if data.path:
        raise UserError("params.yaml: data.path: the folder is already named in dataset: local:…")
    folder = resolve_path(rest, "dataset")
    name = f"local:{folder.name}"
    if READS[fits.family] == "plain text":
        return _in_folder(folder, name, plain.describe_local(folder, data.text))
    if fits.family == "clip":
        dataset = _own_images(folder, data, fits, classes)
    else:
        dataset = _own_texts(folder, data, fits, classes)
    metric = "pearson" if dataset.kind == "regression" else "accuracy"
    return _in_folder(folder, name, replace(dataset, metric=metric))


def _own_texts(folder: Path, data: Data, fits: Fits, classes: list[str] | None) -> Dataset:
    """Columns, kind and class names of a folder of texts."""
    found = texts.describe_local(folder, "test", data.text, data.label, data.kind, classes)
    fits.check("images" if found is None else "texts")
    assert found is not None
    return found


def _own_images(folder: Path, data: Data, fits: Fits, classes: list[str] | None) -> Dataset:
    """Columns, class names and prompts of a folder of images."""
    prompts = resolve_prompts(data.prompts, "")
    named = prompts.classes if prompts else classes
    found = images.describe_local(folder, "test", data.image, data.label, named)
    fits.check("texts" if found is None else "images")
    assert found is not None
    templates = prompts.templates if prompts else ONE_TEMPLATE
    return replace(found, flip=bool(data.flip), templates=list(templates))


def _in_folder(folder: Path, name: str, dataset: Dataset) -> Dataset:
    """The dataset as it lies in a folder; UserError where the folder does not hold it."""
    dataset = replace(dataset, name=name, source="local", path=str(folder))
    if dataset.kind == "classification" and len(dataset.labels) < 2:
        raise UserError(
            f"params.yaml: dataset: {folder} has fewer than two classes (it has "
            f"{', '.join(dataset.labels) or 'none'}); allowed: two or more"
        )
    if dataset.image:
        images.check_local(folder, dataset)
    elif dataset.kind == "language":
        plain.read_plain(dataset)
    else:
        texts.read_texts(dataset)
    return replace(dataset, digest=digest(folder))
