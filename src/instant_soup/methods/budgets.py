"""Layer budgets: how many weights each matrix keeps, instead of one global ranking.

This is an option of rows that score each weight: `budget` of their section. Within its budget a
matrix keeps its largest scores.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from instant_soup.config.fields import MOST_STEPS, integer, number, one_of, setting
from instant_soup.errors import UserError
from instant_soup.methods.base import Method, key_of
from instant_soup.methods.erdos_renyi import densities

if TYPE_CHECKING:
    from instant_soup.sparsity.masks import Mask
    from instant_soup.training.run import Run
    from instant_soup.training.state import Weights

BUDGETS = ("global", "uniform", "erdos_renyi", "lamp", "owl", "ecoflap", "rate_distortion")
IN_SHARDS = ("global", "uniform", "erdos_renyi", "lamp")  # others take batches of their own
# Settings that only some of the budgets read.
READS = {
    "probe_batches": ("ecoflap", "rate_distortion"),
    "levels": ("rate_distortion",),
    "outlier": ("owl",),
    "spread": ("owl",),
}


@dataclass(frozen=True, kw_only=True)
class Budgeted(Method):
    """A row that ranks weights by a score of each, all together or by matrix."""

    budget: str = setting(" | ".join(BUDGETS), one_of(*BUDGETS), default="global")
    probe_batches: int = setting(
        "ecoflap, rate_distortion: batches that layers are probed on",
        integer(1, MOST_STEPS),
        section="budgets",
        default=1,
    )
    levels: int = setting(
        "rate_distortion: sparsities that are tried in each matrix",
        integer(2, 1000),
        section="budgets",
        default=10,
    )
    outlier: float = setting(
        "owl: times the mean score from which a weight is an outlier",
        number(1, float("inf")),
        section="budgets",
        default=5.0,
    )
    spread: float = setting(
        "owl: how far a layer's density is from the mean, about",
        number(0, 0.5),
        section="budgets",
        default=0.08,
    )

    def idle(self) -> dict[str, str]:
        """What other budgets read."""
        own = {n: f"budget: {' | '.join(by)}" for n, by in READS.items() if self.budget not in by}
        return super().idle() | own

    def ranks_shards(self) -> bool:
        """Where the budget takes no batches."""
        return self.budget in IN_SHARDS

    def wants_batches(self) -> bool:
        """Those that layers are probed on."""
        return self.budget in READS["probe_batches"] or super().wants_batches()

    def check(self, sparsity: float, epochs: float) -> None:
        """Check that OWL leaves every layer something.

        Raises:
            UserError: If a layer could be left with nothing.
        """
        super().check(sparsity, epochs)
        if self.budget == "owl" and 2 * self.spread > 1 - sparsity + 1e-9:
            raise UserError(
                f"{key_of(type(self), 'spread')}: {self.spread} may leave a layer without weights "
                f"at sparsity {sparsity}; allowed: at most {(1 - sparsity) / 2:.3g}"
            )

    def best(
        self, run: "Run", scores: "Weights", sparsity: float, *, squared: bool = True
    ) -> "Mask":
        """Keep the largest scores within each matrix's budget; what is pruned already stays so.

        Args:
            run: The run, whose mask says what is pruned already.
            scores: Name → scores, shaped like the weight.
            sparsity: Share of all prunable weights to prune, exactly.
            squared: For LAMP, see `lamp_mask`.

        Returns:
            Name → boolean tensor of the weight's shape; True: kept.
        """
        from instant_soup.sparsity import budgets, masks
        from instant_soup.sparsity.scores import best

        if self.budget == "global":
            return best(scores, sparsity, shards=run.shards)
        if self.budget == "lamp":
            return lamp_mask(run, scores, sparsity, squared=squared)
        # Below all scores, of whatever sign.
        ranked = {n: s.where(run.mask[n].to(s.device), -float("inf")) for n, s in scores.items()}
        total = masks.keep_count(scores, sparsity, run.shards)
        if self.budget == "rate_distortion":
            return self._least_distorting(run, ranked, total)
        wanted = self._wanted(run, ranked, sparsity)
        kept = budgets.allot(wanted, masks.count_each(run.mask, run.shards), total)
        return masks.keep_largest_each(ranked, kept, run.shards)

    def _wanted(self, run: "Run", ranked: "Weights", sparsity: float) -> dict[str, float]:
        """How many weights each matrix should keep, as a real number."""
        from instant_soup.sparsity import budgets
        from instant_soup.sparsity.names import layer_of
        from instant_soup.sparsity.ranking import whole_shapes
        from instant_soup.training import probes

        shapes = whole_shapes(ranked, run.shards)
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        if self.budget == "uniform":
            return {name: (1 - sparsity) * size for name, size in sizes.items()}
        if self.budget == "erdos_renyi":
            dense = densities(shapes, sparsity)
            return {name: dense[name] * size for name, size in sizes.items()}
        of_layers = {layer: int(n) for layer, n in budgets.of_layers(sizes).items()}
        if self.budget == "owl":
            members: dict[str, list] = {layer: [] for layer in of_layers}
            for name, s in ranked.items():
                members[layer_of(name)].append(s[run.mask[name].to(s.device)])
            shares = {n: budgets.outlier_share(s, self.outlier) for n, s in members.items()}
            found = budgets.by_outliers(shares, of_layers, sparsity, self.spread)
            return {name: found[layer_of(name)] * size for name, size in sizes.items()}
        steep = budgets.of_layers(probes.slopes(run, self.probe_batches))
        layers = budgets.by_importance(steep, of_layers, sparsity)
        return {n: layers[layer_of(n)] * s / of_layers[layer_of(n)] for n, s in sizes.items()}

    def _least_distorting(self, run: "Run", ranked: "Weights", total: int) -> "Mask":
        """By dynamic programming over what each matrix's sparsities do to the output."""
        from instant_soup.sparsity import budgets, masks
        from instant_soup.training import probes

        kept, held = {}, masks.count_each(run.mask)
        for name, s in ranked.items():
            shares = [1 - a / self.levels for a in range(self.levels + 1)]
            kept[name] = [min(held[name], round(share * s.numel())) for share in shares]
        changes = probes.distortions(run, ranked, kept, self.probe_batches)
        chosen = budgets.least_distortion(kept, changes, total)
        # Levels seldom add up to the number: the best of all others fill up.
        within = masks.keep_largest_each(ranked, chosen)
        return masks.keep_largest(ranked, total, priority=within)


def lamp_mask(run: "Run", scores: "Weights", sparsity: float, *, squared: bool) -> "Mask":
    """Keep the weights whose LAMP shares are largest; what is pruned already stays so.

    Args:
        run: The run, whose mask says what is pruned already.
        scores: Name → scores, shaped like the weight; those below zero count as zero.
        sparsity: Share of all prunable weights to prune, exactly.
        squared: Whether the scores are of the size of w². If not, LAMP squares them.

    Returns:
        Name → boolean tensor of the weight's shape; True: kept.
    """
    from instant_soup.sparsity import budgets, masks

    energies = {n: s.double().clamp(min=0) for n, s in scores.items()}
    if not squared:
        energies = {n: s.square() for n, s in energies.items()}
    held = {n: kept.to(energies[n].device) for n, kept in run.mask.items()}
    shares = budgets.lamp({n: s.where(held[n], 0.0) for n, s in energies.items()}, run.shards)
    return masks.keep_largest(
        shares, masks.keep_count(scores, sparsity, run.shards), held, run.shards
    )
