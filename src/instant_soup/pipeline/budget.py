"""Whether a run's training has steps enough for its rows, said before the first of them.

How many steps there are depends on the rows of the training split. The plan knows them of a
packaged or local dataset, and refuses there. Of others, and of plain text, whose rows are made of
tokens, the first stage that trains does.
"""

from dataclasses import dataclass
from typing import Any

from instant_soup.config.fields import Stored
from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.methods.registry import rebuild
from instant_soup.pipeline.stage_files import PLAN
from instant_soup.training.schedule import Steps

FILE = "budget.json"  # in the plan's folder; no stage depends on it
FEW = 50  # steps: a pre-trained network hardly learns a task in fewer


@dataclass(frozen=True, kw_only=True)
class Budget(Stored):
    """What the number of steps depends on beside the rows, and what depends on it."""

    epochs: float
    batch_size: int
    warmup: float
    sparsity: float
    methods: dict[str, dict[str, Any]]  # row → its settings
    look_ahead: int  # steps of all of ISP's denoisers; 0 without the row

    @classmethod
    def planned(cls) -> "Budget":
        """That of the plan's folder."""
        return cls.of(read_json(PLAN / FILE))

    def check(self, rows: int) -> None:
        """Check that so many training rows make steps enough.

        Raises:
            UserError: If a row's settings ask for more.
        """
        steps = self._steps(rows)
        for name, settings in self.methods.items():
            try:
                rebuild(name, settings).check_steps(self.sparsity, steps)
            except UserError as error:
                raise UserError(f"params.yaml: {error}") from None

    def told(self, rows: int) -> str:
        """How long a training on so many rows is, what ISP takes beside it, and if it is short."""
        total = self._steps(rows).total
        said = f"training: {total} steps"
        if self.look_ahead:
            said += f"; ISP's denoisers take {self.look_ahead} more"
        if total < FEW:
            said += f"; {total} are few: a higher training.epochs ({self.epochs:g} now) makes more"
        return said

    def _steps(self, rows: int) -> Steps:
        return Steps.of(self.epochs, rows, self.batch_size, self.warmup)
