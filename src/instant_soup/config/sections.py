"""The sections of params.yaml that all methods share: data, training, pre-training.

A `null` stands for the field's default in the preset. `paper` is Table 1 of the paper. `quick` is
the same algorithm, scaled to minutes on two CPU cores (docs/method.md tells how its settings for
texts were chosen).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from instant_soup.config.fields import (
    BOOLEAN,
    FAMILIES,
    MOST_EPOCHS,
    MOST_ROWS,
    PRESETS,
    TEXT,
    ByFamily,
    Rule,
    Stored,
    default_of,
    integer,
    number,
    one_of,
    or_word,
    setting,
    settings_of,
)

TEXTS, IMAGES, PLAIN = ("bert",), ("clip",), ("causal",)
OURS = (*IMAGES, *PLAIN)  # families with a model that is pre-trained here
NO_TEACHER = "none"
OF_TEACHER = ("teacher", "temperature", "hardness")  # settings of training
ALL, NORMS_AND_BIASES, MASK_LORA = "all", "norms_and_biases", "mask_lora"
OF_RETRAINING = ("retrain", "retrain_rate", "lora_rank", "lora_alpha")
SEED = integer(0, 2**31 - 1)
PRECISION = one_of("auto", "fp32", "bf16")


def is_texts(value: Any) -> bool:
    """Whether a value is a list of one or more strings."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) for v in value)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows and columns of the dataset."""

    section: ClassVar[str] = "data"

    path: str | None = setting("folder with a local copy of `dataset`, instead of the hub", TEXT)
    kind: str | None = setting(
        "of local:FOLDER: classification | regression (null: by the labels)",
        one_of("classification", "regression"),
        families=TEXTS,
    )
    text: list[str] | None = setting(
        "of local:FOLDER: [column] or [column, column]",
        Rule(lambda v: is_texts(v) and len(v) <= 2, "a list of one or two column names"),
        families=(*TEXTS, *PLAIN),
    )
    image: str | None = setting("of local:FOLDER: column", TEXT, families=IMAGES)
    label: str | None = setting(
        "local:FOLDER: column; null: label", TEXT, families=(*TEXTS, *IMAGES)
    )
    flip: bool | None = setting(
        "of local:FOLDER: true | false, whether mirror images are alike", BOOLEAN, families=IMAGES
    )
    prompts: str | None = setting(
        "a YAML file with classes and templates for the zero-shot head", TEXT, families=IMAGES
    )
    train_rows: int | str = setting(
        "all | number of training rows", or_word("all", integer(2)), default="all"
    )
    validation_rows: int = setting(
        "cut from the training rows", integer(1), paper=2000, quick=500, default=2000
    )
    validation_share: float = setting(
        "validation is at most this share of the rows that it is cut from",
        number(0, 0.5, low_too=False),
        paper=0.1,
        quick=0.2,
        default=0.2,
    )
    test_rows: int = setting(
        "cut from the training rows where there is no test split", integer(1), default=2000
    )
    max_length: int | None = setting(
        "tokens of a text, or of a block of plain text",
        integer(8),
        families=(*TEXTS, *PLAIN),
        paper=ByFamily(128, 128, 1024),
        quick=64,
        default=128,
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """One fine-tuning run; every method has this budget."""

    section: ClassVar[str] = "training"

    epochs: float = setting(
        "the budget T",
        number(0, MOST_EPOCHS, low_too=False),
        paper=ByFamily(10, 22, 3),
        quick=ByFamily(0.6, 6, 0.5),
    )
    learning_rate: float = setting(
        "at the start; falls linearly to zero over T",
        number(0, 1, low_too=False),
        paper=ByFamily(2e-5, 1e-5),
        quick=ByFamily(1e-4, 5e-4, 2e-3),
    )
    weight_decay: float = setting("of matrices", number(0, 1), default=ByFamily(0.0, 0.1))
    batch_size: int = setting("rows a step", integer(1, MOST_ROWS), default=ByFamily(32, 128))
    warmup: float = setting("share of T", number(0, 1, high_too=False), default=0.0)
    clip_norm: float = setting(
        "largest norm of the gradient", number(0, float("inf"), low_too=False), default=1.0
    )
    dropout: float | str | None = setting(
        "model (as the base model has it) | a probability for all of it",
        or_word("model", number(0, 1, high_too=False)),
        families=TEXTS,
        paper="model",
        quick=0.0,
    )
    freeze_embeddings: bool | None = setting(
        "true | false", BOOLEAN, families=TEXTS, paper=False, quick=True
    )
    crop: float | None = setting(
        "random crops, shifted by up to this share of the side",
        number(0, 0.5),
        families=IMAGES,
        paper=0.125,
        quick=0.0625,
    )
    precision: str = setting("auto | bf16 | fp32", PRECISION, default="auto")
    processes: int = setting("that share each batch, one a GPU", integer(1, 1024), default=1)
    evaluations: int = setting("validations over T", integer(1, 10_000), paper=20, quick=4)
    teacher: str = setting(
        "none | dense (every row but dense learns from the dense row's finished network)",
        one_of(NO_TEACHER, "dense"),
        default=NO_TEACHER,
    )
    temperature: float = setting(
        "teacher: both networks' outputs are divided by it",
        number(0, 100, low_too=False),
        default=2.0,
    )
    hardness: float = setting(
        "teacher: its share in the loss; the labels have the rest", number(0, 1), default=1.0
    )
    retrain: str = setting(
        "all | norms_and_biases (and the head) | mask_lora (these, and low-rank changes of what is "
        "kept): what trains once the last mask is found",
        one_of(ALL, NORMS_AND_BIASES, MASK_LORA),
        default=ALL,
    )
    retrain_rate: float = setting(
        "retrain, not all: factor on learning_rate",
        number(0, 1e4, low_too=False),
        default=10.0,
    )
    lora_rank: int = setting("mask_lora: rank of a change", integer(1, 4096), default=16)
    lora_alpha: float = setting(
        "mask_lora: a change is multiplied by lora_alpha / lora_rank",
        number(0, 1e6, low_too=False),
        default=32.0,
    )


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches in one pass over the rows, at least one."""
    return max(1, rows // batch_size)


@dataclass(frozen=True, kw_only=True)
class Pretraining(Stored):
    """The pre-training of clip-glyph on glyphs, and of llama-snippets on English snippets."""

    section: ClassVar[str] = "pretraining"

    objective: str = setting(
        "contrastive | supervised (classes instead of captions)",
        one_of("contrastive", "supervised"),
        families=IMAGES,
        default="contrastive",
    )
    steps: int = setting(
        "",
        integer(1, 10**7),
        families=OURS,
        paper=ByFamily(None, 20000, 3000),
        quick=ByFamily(None, 1000, 1000),
    )
    batch_size: int = setting(
        "",
        Rule(
            lambda v: integer(32, MOST_ROWS).test(v) and v % 32 == 0,
            f"a multiple of 32, the rows of a group (glyphs.py), up to {MOST_ROWS}",
        ),
        families=OURS,
        paper=ByFamily(None, 1024, 32),
        quick=ByFamily(None, 128, 32),
    )
    learning_rate: float = setting(
        "", number(0, 1, low_too=False), families=OURS, default=ByFamily(None, 1e-3, 2e-3)
    )
    weight_decay: float = setting("", number(0, 1), families=OURS, default=0.1)
    warmup: float = setting(
        "share of the steps", number(0, 1, high_too=False), families=OURS, paper=0.05, quick=0.1
    )
    seed: int = setting("", SEED, families=OURS, default=0)
    precision: str = setting("auto | fp32 | bf16", PRECISION, families=OURS, default="auto")


@dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """The settings of training that the engine looks at, with what a run adds to them."""

    seed: int = 0
    metric: str = "accuracy"
    flip: bool = False
    cycles: int = 1  # of the learning rate over T: a method asks for more
    lowest_rate: float = 0.0  # at the end of each of several, as a share of learning_rate

    @property
    def taught(self) -> bool:
        """Whether the network learns from a teacher."""
        return self.teacher != NO_TEACHER

    @classmethod
    def of_pretraining(cls, settings: Pretraining, clip_norm: float) -> "Recipe":
        """What the engine looks at while it pre-trains a model of ours."""
        return cls(
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            clip_norm=clip_norm,
            precision=settings.precision,
            seed=settings.seed,
        )

    @property
    def partial(self) -> bool:
        """Whether only some of the network trains."""
        return self.retrain != ALL

    def untaught(self) -> "Recipe":
        """The same without a teacher."""
        return self._without(OF_TEACHER)

    def whole(self) -> "Recipe":
        """The same for a training of all of the network."""
        return self._without(OF_RETRAINING)

    def _without(self, names: tuple[str, ...]) -> "Recipe":
        fields = settings_of(Training)
        plain = {n: default_of(fields[n], FAMILIES[0], PRESETS[0]) for n in names}  # as in all
        return replace(self, **plain)
