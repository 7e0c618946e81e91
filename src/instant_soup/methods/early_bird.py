"""EarlyBird (You et al. 2020; Chen et al. 2021): the mask settles long before the network does."""

from collections import deque
from typing import TYPE_CHECKING

from instant_soup.methods import criteria
from instant_soup.pipeline import main_network
from instant_soup.pipeline.main_network import Ticket, advance
from instant_soup.sparsity import masks
from instant_soup.training.cost import Cost
from instant_soup.training.schedule import steps_of

if TYPE_CHECKING:
    from instant_soup.pipeline.tracking import StageRun


def early_bird(settings: dict, run: "StageRun") -> Ticket:
    """Train densely until the magnitude mask at the target sparsity stays put; return that mask.

    Every `every` epochs the mask is taken; it is drawn once it differs from each of the `window`
    masks before in less than a share `threshold` of all weights. The search's steps are extra: the
    ticket is then trained from the start. Where the mask never settles within the budget, the last
    one is drawn, and `drawn` says so. `settings` are those of training and of `early_bird`.
    """
    state, mask = main_network.load_start(settings["start"])
    steps_per_epoch, total = main_network.budget(settings)
    every = steps_of(settings["every"], steps_per_epoch)
    cost, kept = Cost(), []  # type: tuple[Cost, list]
    earlier: deque[masks.Mask] = deque(maxlen=settings["window"])
    distance, settled = 1.0, False
    for last in [*range(every, total, every), total]:
        state, part, _ = advance(
            state, mask, settings, last=last, label="search", run=run, keep=kept
        )
        cost.add(vars(part))
        candidate = criteria.magnitude({n: state.weights[n] for n in mask}, settings["sparsity"])
        if earlier:
            distance = max(masks.distance(candidate, other) for other in earlier)
        settled = len(earlier) == settings["window"] and distance < settings["threshold"]
        if settled:
            break
        earlier.append(candidate)
    cost.search_steps, cost.steps = cost.steps, 0
    drawn = {"step": state.step, "epoch": round(state.step / steps_per_epoch, 4)}
    drawn |= {"distance": distance, "settled": settled}
    return Ticket(candidate, cost, drawn=drawn, checkpoints=kept)
