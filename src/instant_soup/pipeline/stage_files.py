"""The settings file of each stage, typed: what the plan writes and the stage's script reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from instant_soup.config.fields import Stored
from instant_soup.config.sections import Pretraining, Recipe
from instant_soup.files import new_file, read_yaml
from instant_soup.methods.base import Method
from instant_soup.methods.registry import rebuild
from instant_soup.methods.rounds import Schedule
from instant_soup.models.head import Head

PLAN = Path("models/plan")
IDLE = {"idle": True}  # of a stage that is listed in dvc.yaml and not needed

S = TypeVar("S", bound=Stored)


def read_stage(kind: type[S], name: str) -> S | None:
    """A stage's settings; None where this run does not need it."""
    path = PLAN / f"{name}.yaml"
    return None if read_yaml(path) == IDLE else kind.read(path)


def mark_idle(*outputs: Path) -> None:
    """Write the outputs of a stage that is listed but not needed: a mere note."""
    for output in outputs:
        note = output if output.suffix else output / "idle.txt"
        with new_file(note) as unfinished:
            unfinished.write_text("not needed for this run\n")


def isp_round(i: int) -> Path:
    """The folder of ISP's round i."""
    return Path(f"models/isp/round_{i}")


def weak_mask_file(i: int, n: int) -> Path:
    """The weak mask of denoiser n in round i."""
    return isp_round(i) / f"weak/{n}.safetensors"


@dataclass(frozen=True, kw_only=True)
class PretrainStage(Pretraining):
    """A pre-training. `code` is a digest of its sources, which its checkpoints depend on."""

    code: str = ""


@dataclass(frozen=True, kw_only=True)
class EncodeStage(Stored):
    """Tokens of a text, or of a block, at most."""

    max_length: int | None


@dataclass(frozen=True, kw_only=True)
class TrainStage(Stored):
    """Training from a folder with a state and a mask.

    `teacher` is the dense row's recipe, if the network learns from it. `code` is a digest of all
    sources that the stage runs, `engine` of those that train.
    """

    recipe: Recipe
    start: str
    teacher: Recipe | None = None
    code: str = ""
    engine: str = ""


@dataclass(frozen=True, kw_only=True)
class CalibrateStage(TrainStage):
    """Training up to the end of one of ISP's rounds, of which there are at least `rounds`."""

    schedule: Schedule
    rounds: int


@dataclass(frozen=True, kw_only=True)
class WeakMasksStage(TrainStage):
    """A round's look-aheads: the settings of ISP that they depend on."""

    sparsity: float
    isp: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SoupStage(Stored):
    """A round's soup: the settings of ISP that it depends on."""

    start: str
    sparsity: float
    adjust: bool
    seed: int
    isp: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TicketStage(Stored):
    """How a method finds its ticket. What it does not look at is not here."""

    method: str
    settings: dict[str, Any]
    sparsity: float
    seed: int | None = None
    recipe: Recipe | None = None
    teacher: Recipe | None = None
    isp_rounds: int | None = None  # of rows that are made of ISP's ticket
    isp_denoisers: int | None = None
    head: Head | None = None  # of a network that is drawn again
    code: str = ""
    engine: str = ""

    def build(self) -> Method:
        """The method with its settings."""
        return rebuild(self.method, self.settings)


@dataclass(frozen=True, kw_only=True)
class RetrainStage(TrainStage):
    """The rest of the budget on a ticket: a folder of find_ticket.py, or ISP's last round."""

    ticket: str = ""
    isp_rounds: int = 0
    isp_denoisers: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stored):
    """Who a finished network is: what its result says of it."""

    model: str
    dataset: str
    seed: int
    family: str
    method: str
    target_sparsity: float
    preset: str
    variant: str
    metric: str
    precision: str
    zero_shot: bool

    def identity(self) -> dict[str, Any]:
        """What the result repeats."""
        own = self.contents()
        return {key: own[key] for key in own if key not in ("precision", "zero_shot")}


@dataclass(frozen=True, kw_only=True)
class TablesStage(Stored):
    """The rows of this run."""

    methods: list[str]
    metric: str


@dataclass(frozen=True, kw_only=True)
class ExportStage(Stored):
    """The type of an exported network's weights."""

    dtype: str
