"""Progressive magnitude pruning: ISP's schedule without denoisers (paper, section 8)."""

from typing import TYPE_CHECKING

from instant_soup import criteria, main_network
from instant_soup.main_network import Ticket, advance
from instant_soup.schedules import calibration_steps, steps_of
from instant_soup.training import Cost

if TYPE_CHECKING:
    from instant_soup.tracking import StageRun


def progressive(settings: dict, run: "StageRun") -> Ticket:
    """Train t · (i + 1) steps, prune by magnitude to the round's sparsity, go on; as Algorithm 1.

    Nothing restarts: the ticket is the last round's mask with the state that it was taken from.
    `settings` are those of training, the rounds' `sparsities`, `calibration` (t, in epochs) and
    `growing` (whether round i trains i + 1 times as long).
    """
    state, mask = main_network.load_start(settings["start"])
    steps_per_epoch, _ = main_network.budget(settings)
    t = steps_of(settings["calibration"], steps_per_epoch)
    cost, curve, kept = Cost(), [], []  # type: tuple[Cost, list, list]
    for i, sparsity in enumerate(settings["sparsities"]):
        last = state.step + calibration_steps(i, t, settings["growing"])
        state, part, rows = advance(
            state, mask, settings, last=last, label=f"calibrate round {i}", run=run, keep=kept
        )
        cost.add(vars(part))
        curve += rows
        mask = criteria.magnitude({n: state.weights[n] for n in mask}, sparsity)
        state.prune(mask)
    return Ticket(mask, cost, state=state, curve=curve, checkpoints=kept)
