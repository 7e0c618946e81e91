"""AC/DC's mask: compressed and dense by turns, compressed at the end (methods/ac_dc.py)."""

from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training.pruner import MovingMask

MOMENTUM = {"exp_avg", "momentum_buffer"}  # of an optimiser's moments; others are sizes of steps


class AcDcPruner(MovingMask):
    """A mask that is switched on and off at some steps.

    While the network is dense, `mask` keeps everything.
    """

    def __init__(
        self, mask: Mask, sparsity: float, switches: dict[int, bool], ranks_by: str
    ) -> None:
        """Begin dense.

        Args:
            mask: A mask that keeps everything.
            sparsity: Share of the prunable weights to prune in compressed phases.
            switches: Step → whether the network is compressed from then on; the last one stays.
            ranks_by: `magnitude` or `fisher`.
        """
        super().__init__(mask, sparsity, max(switches))
        self.switches, self.ranks_by = switches, ranks_by

    def after_step(self, step: int) -> None:
        """Compress or decompress, if it is time."""
        compressed = self.switches.get(step + 1)
        if compressed is None:
            return
        if not compressed:
            self.move_to(masks.full(self.mask))
            self._reset_momentum()
        elif step + 1 == self.settled:
            self.settle(self._best())
        else:
            # v of what is pruned goes on, fading: a weight that starts again from zero, without
            # gradients behind it, takes no larger steps than others.
            spared = {key for _, key, _ in self.moments()} - MOMENTUM
            self.move_to(self._best(), spared=spared)

    def _best(self) -> Mask:
        moments = self.second_moments()
        worth = scores.worth_of(self.ranks_by, self.weights(), moments, self.shards)
        found = scores.best(worth, self.sparsity, shards=self.shards)
        return {name: kept.cpu() for name, kept in found.items()}

    def _reset_momentum(self) -> None:
        for _, key, moment in self.moments():
            if key in MOMENTUM:
                moment.zero_()


def switches(begin: int, phase: float, last_dense: int, end: int) -> dict[int, bool]:
    """At which steps the network is compressed and decompressed; it starts dense.

    Args:
        begin: The step of the first compression.
        phase: Steps in a phase, compressed and dense by turns.
        last_dense: From this step on the network is dense; no compressed phase begins later.
        end: From this step on the network is compressed.

    Returns:
        Step → whether the network is compressed from then on.
    """
    found: dict[int, bool] = {}
    while (at := round(begin + len(found) * phase)) < last_dense:
        found[at] = len(found) % 2 == 0
    if len(found) % 2:
        found[last_dense] = False
    return {**found, end: True}
