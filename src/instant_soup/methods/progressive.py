"""Pruning on the way: ISP's schedule without denoisers, by magnitude or by Fisher scores.

By magnitude it is the paper's progressive pruning (section 8). By the Fisher scores that the
network's own optimiser holds it is ISP+, the winner of studies/better_soups.py (docs/findings.md).
"""

from typing import TYPE_CHECKING

from instant_soup.methods import criteria
from instant_soup.methods.rounds import calibration_steps
from instant_soup.pipeline import main_network
from instant_soup.pipeline.main_network import Ticket, advance
from instant_soup.training.cost import Cost
from instant_soup.training.schedule import steps_of

if TYPE_CHECKING:
    from instant_soup.pipeline.tracking import StageRun


def progressive(settings: dict, run: "StageRun") -> Ticket:
    """Train t · (i + 1) steps, prune to the round's sparsity, go on; as Algorithm 1.

    Nothing restarts: the ticket is the last round's mask with the state that it was taken from.
    `settings` are those of training, the rounds' `sparsities`, `calibration` (t, in epochs),
    `growing` (whether round i trains i + 1 times as long) and `score` (magnitude | fisher).
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
        weights = {name: state.weights[name] for name in mask}
        if settings["score"] == "fisher":
            mask = criteria.fisher(weights, state.second_moments, sparsity)
        else:
            mask = criteria.magnitude(weights, sparsity)
        state.prune(mask)
    return Ticket(mask, cost, state=state, curve=curve, checkpoints=kept)
