"""Datasets: those known by name, and what is known of the one at hand. No heavy imports."""

from dataclasses import dataclass, field
from typing import Any

from instant_soup.config.fields import Stored


def holds(kind: str, image: str) -> str:
    """What the rows of a dataset are: images, texts (with labels), plain text."""
    return "images" if image else "plain text" if kind == "language" else "texts"


@dataclass(frozen=True)
class Task:
    """A dataset: its texts or images, its labels and the metric that its papers report."""

    source: str  # packaged | hub
    text: tuple[str, ...] = ()  # the text column, or the two of a pair; none for images
    kind: str = "classification"  # | regression | language
    labels: tuple[str, ...] = ()  # class names, in the order of the label numbers
    metric: str = "accuracy"  # accuracy | matthews | pearson | perplexity
    hub: tuple[str, str] = ("", "")  # hub dataset, configuration
    test: str = "validation"  # GLUE's own test labels are not public
    image: str = ""  # the image column; none for texts
    label: str = "label"  # the label column; none of plain text
    prompts: str = ""  # images: class names and templates, prompts/NAME.yaml
    flip: bool = False  # images: whether a mirror image is of the same class

    @property
    def holds(self) -> str:
        """What its rows are: images, texts (with labels), plain text."""
        return holds(self.kind, self.image)


@dataclass(frozen=True)
class Dataset(Stored):
    """The dataset at hand: where its rows are, what they hold, and how many are taken."""

    name: str = ""  # in tables and in the ledger
    source: str = ""  # packaged | hub | local
    kind: str = "classification"  # | regression | language
    text: list[str] = field(default_factory=list)  # the text column, or the two of a pair
    labels: list[str] = field(default_factory=list)  # class names, in the order of their numbers
    metric: str = "accuracy"  # accuracy | matthews | pearson | perplexity
    hub: list[str] = field(default_factory=list)  # hub dataset, configuration
    test: str = "test"  # the test split's name
    image: str = ""  # the image column; none for texts
    label: str = "label"  # the label column
    flip: bool = False  # images: whether a mirror image is of the same class
    templates: list[str] = field(default_factory=list)  # images: prompts that class names go into
    path: str = ""  # of a local folder
    digest: str = ""  # of its files
    train_rows: int | str = "all"  # | a number
    validation_rows: int = 2000  # cut from the training rows
    validation_share: float = 0.2  # at most, of these
    test_rows: int = 2000  # cut from all rows, where there is no test split

    @property
    def holds(self) -> str:
        """What its rows are: images, texts (with labels), plain text."""
        return holds(self.kind, self.image)


def glue(config: str, *text: str, labels: tuple[str, ...], **facts: str) -> Task:
    """A GLUE task under the hub's name and columns."""
    return Task("hub", text, labels=labels, hub=("nyu-mll/glue", config), **facts)  # type: ignore[arg-type]


def pictures(repo: str, config: str, prompts: str, **facts: Any) -> Task:
    """An image dataset under the hub's name and columns; class names come from its prompts."""
    known = {"image": "image", "test": "test", **facts}
    return Task("hub", hub=(repo, config), prompts=prompts, **known)


def plain_text(source: str, hub: tuple[str, str] = ("", "")) -> Task:
    """Plain text to predict the next token of."""
    facts: dict[str, Any] = {"kind": "language", "metric": "perplexity", "label": ""}
    return Task(source, ("text",), hub=hub, test="test", **facts)


_ENTAILED = ("entailment", "not_entailment")
_SAME = ("not_equivalent", "equivalent")

DATASETS = {
    "reviews-sentiment": Task("packaged", ("sentence",), labels=("negative", "positive")),
    "reviews-rating": Task("packaged", ("sentence",), kind="regression", metric="pearson"),
    "sst2": glue("sst2", "sentence", labels=("negative", "positive")),
    "cola": glue("cola", "sentence", labels=("unacceptable", "acceptable"), metric="matthews"),
    "mrpc": glue("mrpc", "sentence1", "sentence2", labels=_SAME),
    "qqp": glue("qqp", "question1", "question2", labels=("not_duplicate", "duplicate")),
    "stsb": glue("stsb", "sentence1", "sentence2", labels=(), kind="regression", metric="pearson"),
    "mnli": glue(
        "mnli",
        "premise",
        "hypothesis",
        labels=("entailment", "neutral", "contradiction"),
        test="validation_matched",
    ),
    "qnli": glue("qnli", "question", "sentence", labels=_ENTAILED),
    "rte": glue("rte", "sentence1", "sentence2", labels=_ENTAILED),
    "wnli": glue("wnli", "sentence1", "sentence2", labels=("not_entailment", "entailment")),
    "mnist-sample": Task("packaged", image="img", test="test", prompts="mnist"),
    "mnist": pictures("ylecun/mnist", "mnist", "mnist"),
    "cifar10": pictures("uoft-cs/cifar10", "plain_text", "cifar10", image="img", flip=True),
    "cifar100": pictures(
        "uoft-cs/cifar100", "cifar100", "cifar100", image="img", label="fine_label", flip=True
    ),
    "svhn": pictures("ufldl-stanford/svhn", "cropped_digits", "svhn"),
    "gtsrb": pictures("tanganke/gtsrb", "default", "gtsrb"),
    "stanford_cars": pictures("tanganke/stanford_cars", "default", "stanford_cars", flip=True),
    "reviews-text": plain_text("packaged"),
    "wikitext2": plain_text("hub", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
    "wikitext103": plain_text("hub", ("Salesforce/wikitext", "wikitext-103-raw-v1")),
}
