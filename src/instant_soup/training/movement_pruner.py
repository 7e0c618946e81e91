"""Masks of learnt scores: movement pruning and its variants.

methods/movement.py says what movement pruning is. Each variant has its own file there too: soft
movement, masks on frozen weights, bi-level pruning.
"""

import torch

from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import sums, true_count
from instant_soup.training.exchange import own_part
from instant_soup.training.pruner import MovingMask, Parameters, Tensors, own_copy
from instant_soup.training.schedule import cubic, learning_rate

LEAST = 0.005  # share of each matrix that a threshold leaves
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")  # of AdamW and SGD
FIRST_KEPT, FIRST_PRUNED = 1.0, 0.99  # Lottery Jackpots' scores at the start


class MovementPruner(MovingMask):
    """A mask of the best scores, which learn through it. It keeps the pruned weights' values.

    `scope` is `local` (all matrices have one density), `global` or, if the weights are `frozen` and
    do not train, `magnitude` (each matrix is as dense as in the mask by magnitude).
    """

    def __init__(
        self,
        mask: Mask,
        sparsity: float,
        *,
        begin: int,
        settled: int,
        total: int,
        learning_rate: float,
        every: int,
        scope: str,
        frozen: bool = False,
    ) -> None:
        super().__init__(mask, sparsity, settled)
        self.begin, self.total, self.frozen = begin, total, frozen
        self.rate, self.every, self.scope = learning_rate, every, scope
        self.stored: Tensors = {}  # the dense weights
        self.learnt: Tensors = {}  # the scores, in fp32
        self.openings: Tensors = {}  # the mask as floats; nothing while nothing is pruned
        self.kept_at: tuple[float, dict[str, int]] = (-1.0, {})  # sparsity, what stays of each
        self.of_scores: torch.optim.Optimizer  # while they learn

    def wants_gradients(self, step: int) -> bool:
        """True: the scores learn at every step."""
        return not self.done

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with new scores, or go on with those of a checkpoint."""
        super().attach(parameters, optimizer, tensors)
        if self.done:
            return
        for name, w in self.weights().items():
            self.stored[name] = own_copy(tensors.get(f"weight.{name}", w), w)
            if tensors:
                self.learnt[name] = own_copy(tensors[f"score.{name}"], w)
        if not tensors:
            self.learnt = self._first_scores()
        self.of_scores = self._optimizer(list(self.learnt.values()))
        for name, one in self.learnt.items():
            held = {key: tensors.get(f"scores.{key}.{name}") for key in MOMENTS}
            moments = {key: tensor.clone() for key, tensor in held.items() if tensor is not None}
            if moments:
                self.of_scores.state[one] = {k: t.to(one.device) for k, t in moments.items()}

    def after_backward(self, step: int, gradients: Tensors | None = None) -> None:
        """Learn the scores from the dense gradients; put the pruned weights back for the step."""
        if not self.done:
            dense = gradients if gradients is not None else self._own_gradients()
            for name, gradient in dense.items():
                self.learnt[name].grad = self._slope(step, name, gradient).float()
            with torch.no_grad():
                for name in self.openings:
                    own_part(self.parameters[name]).copy_(self.stored[name])
        if self.frozen:
            for parameter in self.parameters.values():
                parameter.grad = None  # so that no optimiser moves it
        elif gradients is None:
            self._mask_gradients()

    def after_step(self, step: int) -> None:
        """Take the scores' step; keep the dense weights, and leave the network pruned."""
        if self.done:
            return
        for group in self.of_scores.param_groups:
            group["lr"] = learning_rate(step, self.total, self.rate)
        self.of_scores.step()
        self.of_scores.zero_grad()
        steps_done = step + 1
        if steps_done >= self.settled:
            # From here on it is a fixed mask: what it prunes is gone.
            self.settle(self._best(self.sparsity))
            del self.of_scores
            self.stored, self.learnt = {}, {}
            return
        with torch.no_grad():
            for name, weight in self.weights().items():
                self.stored[name].copy_(weight)
        if steps_done > self.begin and (steps_done - self.begin) % self.every == 0:
            self._take(self._moving(steps_done))
        self._leave_pruned()

    def tensors(self) -> Tensors:
        """The mask, the scores with their moments and the dense weights."""
        held = super().tensors()
        for name, one in self.learnt.items():
            held |= {f"score.{name}": one, f"weight.{name}": self.stored[name]}
            # A matrix that no loss has reached has no moments.
            moments = self.of_scores.state.get(one, {})
            held |= {f"scores.{key}.{name}": moments[key] for key in MOMENTS if key in moments}
        return held

    def _first_scores(self) -> Tensors:
        return {n: torch.zeros_like(w, dtype=torch.float32) for n, w in self.stored.items()}

    def _optimizer(self, learnt: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(learnt, lr=0.0, weight_decay=0.0, fused=True)

    def _slope(self, step: int, name: str, gradient: torch.Tensor) -> torch.Tensor:
        """The loss's gradient with respect to a matrix's scores; `gradient` is dL/d(M ⊙ W)."""
        return gradient * self.stored[name]

    def _moving(self, steps_done: int) -> Mask:
        """The mask at a step before it settles."""
        return self._best(self._target(steps_done))

    def _target(self, steps_done: int) -> float:
        return 1 - cubic(steps_done, self.begin, self.settled, 1.0, 1 - self.sparsity)

    def _best(self, sparsity: float) -> Mask:
        if self.scope == "magnitude":
            kept = self._kept_by_magnitude(sparsity)
            mask = masks.keep_largest_each(self.learnt, kept, self.shards)
        else:
            best = scores.best_each if self.scope == "local" else scores.best
            mask = best(self.learnt, sparsity, shards=self.shards)
        return {name: kept.cpu() for name, kept in mask.items()}

    def _kept_by_magnitude(self, sparsity: float) -> dict[str, int]:
        if self.kept_at[0] != sparsity:  # the weights are frozen
            mask = scores.magnitude(self.stored, sparsity, self.shards)
            self.kept_at = sparsity, masks.count_each(mask, self.shards)
        return self.kept_at[1]

    def _take(self, mask: Mask) -> None:
        self.mask = mask
        self._count()
        self._make_factors()

    def _make_factors(self) -> None:
        self.factors = self.openings = self._as_floats(self.openings)
        if self.frozen:  # no gradient counts in the norm by which others are clipped
            self.factors = {n: torch.zeros((), device=p.device) for n, p in self.parameters.items()}

    def _leave_pruned(self) -> None:
        with torch.no_grad():
            for name, factor in self.openings.items():
                own_part(self.parameters[name]).mul_(factor)


class SoftMovementPruner(MovementPruner):
    """Before it settles, the mask of all scores whose sigmoid is above a rising threshold.

    A penalty, `penalty` times the mean over matrices of their mean sigmoid, pulls scores down. It
    rises with the threshold. The scores decide how sparse that is; the last mask is exact.
    """

    def __init__(self, *given: object, threshold: float, penalty: float, **more: object) -> None:
        super().__init__(*given, **more)  # type: ignore[arg-type]
        self.threshold, self.penalty = threshold, penalty

    def _slope(self, step: int, name: str, gradient: torch.Tensor) -> torch.Tensor:
        score = self.learnt[name]
        opening = score.sigmoid()
        penalty = self.penalty * self._threshold(step) / self.threshold
        size = self.parameters[name].numel()  # of all shards
        pull = opening * (1 - opening) * (penalty / size / len(self.learnt))
        return super()._slope(step, name, gradient) + pull

    def _moving(self, steps_done: int) -> Mask:
        threshold = self._threshold(steps_done)
        mask = {}
        for name, score in self.learnt.items():
            kept = score.sigmoid() > threshold
            least = max(1, round(LEAST * self.parameters[name].numel()))
            if sums([true_count(kept)], self.shards)[0] < least:
                kept = masks.largest(score, least, shards=self.shards)
            mask[name] = kept.cpu()
        return mask

    def _threshold(self, steps_done: int) -> float:
        return cubic(steps_done, self.begin, self.settled, 0.0, self.threshold)


class AtTargetPruner(MovementPruner):
    """At the target sparsity from the first step on; scores learn by SGD with momentum."""

    momentum, weight_decay = 0.9, 0.0

    def attach(
        self, parameters: Parameters, optimizer: torch.optim.Optimizer, tensors: Tensors
    ) -> None:
        """Begin with the mask of the first scores, or go on with a checkpoint's."""
        super().attach(parameters, optimizer, tensors)
        if not tensors:
            self._take(self._moving(0))
            self._leave_pruned()

    def _optimizer(self, learnt: list[torch.Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            learnt, lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def _target(self, steps_done: int) -> float:
        return self.sparsity


class JackpotPruner(AtTargetPruner):
    """Lottery Jackpots: at the start the mask by magnitude, and scores that are nearly equal."""

    weight_decay = 5e-4

    def _first_scores(self) -> Tensors:
        first = scores.magnitude(self.stored, self.sparsity, self.shards)
        return {name: torch.where(m, FIRST_KEPT, FIRST_PRUNED) for name, m in first.items()}


class BiPPruner(AtTargetPruner):
    """Bi-level: the scores' gradient includes the weights' own reaction to the mask."""

    def __init__(self, *given: object, implicit: float, **more: object) -> None:
        """Take `implicit`, 1/γ, the weight of that reaction, beside what the base class takes."""
        super().__init__(*given, **more)  # type: ignore[arg-type]
        self.implicit = implicit

    def _first_scores(self) -> Tensors:
        return scores.magnitude_scores(self.stored)

    def _slope(self, step: int, name: str, gradient: torch.Tensor) -> torch.Tensor:
        plain = super()._slope(step, name, gradient)
        reaction = gradient.square() * self.mask[name].to(gradient.device)
        return plain - self.implicit * reaction
