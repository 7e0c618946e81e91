"""Pruning in a loop of one's own: every carried method, to the weight, and to the bit."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import instant_soup
from helpers import loader, loss, perceptron, products
from instant_soup.errors import UserError
from instant_soup.methods.base import Method
from instant_soup.methods.grasp import GraSP
from instant_soup.methods.registry import methods
from instant_soup.methods.snip import SNIP
from instant_soup.sparsity import masks, scores
from instant_soup.training.pruner import PrunesInRounds, fits
from instant_soup.training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 24
CARRIED = [n for n, one in methods().items() if one.pruner is not Method.pruner]
FOREIGN = [n for n, one in methods().items() if one.pruner is Method.pruner]
# Where the methods' defaults are for longer runs.
SHORT: dict[str, Any] = {
    "isp": {"denoisers": 2, "look_ahead": 3},
    **{"granet": {"every": 3}, "rigl": {"every": 3}, "platon": {"every": 2}},
    **{"ac_dc": {"phase": 0.1}, "movement": {"every": 2}},
    "gmp": {"prunes": 6, "cycles": 1},
}
OBJECTS = {"snip": SNIP(batches=2), "grasp": GraSP(batches=2)}


def taylor(weights: dict, gradients: dict, state: Any) -> dict:
    return {n: (w * gradients[n]).abs() for n, w in weights.items()}


def data(accumulate: int = 1) -> list[list[Any]]:
    """The batches of each step; several where gradients are accumulated."""
    rows = list(zip(*products().tensors, strict=True))
    draws = torch.Generator().manual_seed(0)
    found = []
    for _ in range(STEPS):
        index = torch.randint(len(rows), (16,), generator=draws).tolist()
        batch = torch.utils.data.default_collate([rows[i] for i in index])
        parts = [t.chunk(accumulate) for t in batch]
        found.append(list(zip(*parts, strict=True)))
    return found


class Loop:
    """A model, an AdamW and a pruner, in a loop as people write it."""

    def __init__(
        self, method: Any = "isp", accumulate: int = 1, optimizer: Any = None, **settings: Any
    ) -> None:
        self.model, self.batches = perceptron(), data(accumulate)
        make = optimizer or (lambda p: torch.optim.AdamW(p, lr=3e-3))
        self.optimizer = make(self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(step, STEPS, 1.0)
        )
        self.pruner = instant_soup.Pruner(
            self.model,
            self.optimizer,
            method=method,
            steps=STEPS,
            **{"sparsity": 0.75, "batches": loader(), "loss": loss, **settings},
        )

    def run(self, first: int = 0, last: int = STEPS) -> "Loop":
        self.model.train()
        for step in range(first, last):
            torch.manual_seed(step)  # dropout
            for part in self.batches[step]:
                (loss(self.model, part) / len(self.batches[step])).backward()
            self.pruner.after_backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.pruner.after_step()
            self.optimizer.zero_grad()
            assert self.pruner.step == step + 1
            self.check_zeros()
        return self

    def check_zeros(self) -> None:
        """Between two steps the network is pruned."""
        parameters = dict(self.model.named_parameters())
        assert not any(parameters[n].detach()[~kept].any() for n, kept in self.pruner.mask.items())

    def states(self) -> tuple[dict, ...]:
        parts = (self.model, self.optimizer, self.schedule, self.pruner)
        return tuple(copy.deepcopy(part.state_dict()) for part in parts)


def assert_same(one: Loop, other: Loop) -> None:
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert all(torch.equal(kept, other.pruner.mask[n]) for n, kept in one.pruner.mask.items())


def of(name: Any) -> dict[str, Any]:
    """A method, and its settings for a short loop."""
    return {"method": OBJECTS.get(name, name), **SHORT.get(name, {})}


@cache
def whole_loop(name: Any, accumulate: int = 1) -> Loop:
    """A method's loop from begin to end, without a stop: to look at, for several tests."""
    return Loop(**of(name), accumulate=accumulate).run()


@pytest.mark.parametrize("name", [*CARRIED, taylor])
def test_every_carried_method_prunes_to_the_weight(name: Any) -> None:
    loop = whole_loop(name)
    kept, total = masks.count(loop.pruner.mask)
    dense = name == "dense"
    assert total - kept == (0 if dense else round(0.75 * total)) and loop.pruner.done
    assert loop.pruner.sparsity == pytest.approx(0.0 if dense else 0.75, abs=1e-3)
    for name, mask in loop.pruner.mask.items():
        moments = loop.optimizer.state.get(loop.model.get_parameter(name), {})
        assert not any(m[~mask].any() for m in moments.values() if m.shape == mask.shape)


@pytest.fixture
def deterministic() -> Any:
    """torch refuses what it cannot repeat, as with the Trainer's `full_determinism`."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.usefixtures("deterministic")
def test_nothing_is_done_that_cannot_be_repeated(name: str) -> None:
    fisher = {"score": "fisher"} if name in ("granet", "rigl") else {}
    whole, target = Loop(**{**of(name), **fisher}).run(), 0.0 if methods()[name].dense else 0.75
    assert masks.count(whole.pruner.mask)[0] == masks.keep_count(whole.pruner.mask, target)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_trains_more_than_once_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"trains more than once|only the pipeline has"):
        Loop(name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("cut", [1, 3, 7, 16, 20])
@pytest.mark.parametrize("name", ["isp", "isp_plus", "gmp", "movement", "granet", taylor])
def test_a_resumed_loop_is_the_uninterrupted_one(name: Any, cut: int, accumulate: int) -> None:
    kept = Loop(**of(name), accumulate=accumulate).run(0, cut).states()
    assert_same(whole_loop(name, accumulate), resumed(name, kept, accumulate=accumulate).run(cut))


def resumed(name: Any, kept: tuple[dict, ...], **how: Any) -> Loop:
    """A loop that goes on from the states of another one."""
    rest = Loop(**of(name), **how)
    for part, state in zip(
        (rest.model, rest.optimizer, rest.schedule, rest.pruner), kept, strict=True
    ):
        part.load_state_dict(state)
    return rest


@pytest.mark.parametrize("cut", [7, 20])
@pytest.mark.parametrize("name", ["platon", "ac_dc", "rigl", "smp", "bip"])
def test_other_moving_masks_go_on_to_the_bit(name: str, cut: int) -> None:
    first = Loop(**of(name)).run(0, cut)
    assert_same(whole_loop(name), resumed(name, first.states()).run(cut))


@pytest.mark.parametrize("name", ["random", "layerwise", "snip", "movement"])
def test_a_pruner_made_beside_a_trained_model_goes_on_at_once(name: str, tmp_path: Any) -> None:
    """`resume` searches no mask anew, and states go through torch.save."""
    first = Loop(**of(name)).run(0, 9)
    torch.save(first.pruner.state_dict(), tmp_path / "pruner.pt")
    state = torch.load(tmp_path / "pruner.pt")
    first.pruner = instant_soup.Pruner(
        first.model, first.optimizer, steps=STEPS, sparsity=0.75, batches=loader(), loss=loss,
        resume=state, **of(name),
    )  # fmt: skip
    assert_same(whole_loop(name), first.run(9))


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Two halves are one batch, up to rounding: the same masks, as there is no dropout."""
    loops = [Loop("isp_plus", accumulate=n) for n in (1, 2)]
    for loop in loops:
        loop.model[2].p = 0.0
        loop.run()
    one, other = (loop.pruner.mask for loop in loops)
    assert masks.distance(one, other) < 0.01


def test_a_loop_like_prune_is_prune() -> None:
    """The engine's own steps in a loop: isp_plus finds the same network as `prune` does."""
    own = {"sparsity": 0.75, "method": "isp_plus"}
    pruned = instant_soup.prune(
        perceptron(), loader(), loss, steps=STEPS, learning_rate=3e-3, precision="fp32", **own
    )
    from instant_soup.library.run import steps

    loop = Loop("isp_plus")
    for group in loop.optimizer.param_groups:
        group |= {"weight_decay": 0.0, "fused": True, "foreach": False}
    for step, batch in steps(loader(), 0, STEPS, 0):
        torch.manual_seed(step)
        loss(loop.model, batch).backward()
        loop.pruner.after_backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        for group in loop.optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, 3e-3)
        loop.optimizer.step()
        loop.pruner.after_step()
        loop.optimizer.zero_grad()
    for name, weight in pruned.model.state_dict().items():
        torch.testing.assert_close(loop.model.state_dict()[name], weight)
    assert masks.distance(loop.pruner.mask, pruned.mask) < 0.01


def test_look_aheads_leave_random_numbers_and_the_model_alone() -> None:
    """Denoisers trained in vain change nothing: a union with the own mask is the own mask."""
    plain = Loop("progressive").run()
    isp = Loop("isp", denoisers=2, look_ahead=3, own_mask=True).run()
    assert_same(plain, isp)
    cost = isp.pruner.run.cost
    assert (cost.steps, cost.search_steps) == (0, 4 * 2 * 3)


def test_fisher_takes_the_moments_of_any_adam() -> None:
    for kind in (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam):
        loop = Loop("isp_plus", optimizer=lambda p, kind=kind: kind(p, lr=1e-3))
        assert loop.run().pruner.done
    loop = Loop("isp_plus", compression_rate=0.75, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    (end,) = loop.pruner.inner.ends
    twin = Loop("dense", optimizer=lambda p: torch.optim.Adam(p, lr=1e-3)).run(0, end)
    parameters = {name: twin.model.get_parameter(name) for name in loop.pruner.mask}
    moments = {name: twin.optimizer.state[p]["exp_avg_sq"] for name, p in parameters.items()}
    expected = scores.fisher({n: p.detach() for n, p in parameters.items()}, moments, 0.75)
    loop.run(0, end)
    assert all(torch.equal(loop.pruner.mask[name], kept) for name, kept in expected.items())


FISHER = {
    "isp_plus": {},
    "isp": {"score": "fisher"},
    "granet": {"score": "fisher", "every": 3},
    "rigl": {"score": "fisher", "every": 3},
    "ac_dc": {"score": "fisher"},
}


@pytest.mark.parametrize("name", FISHER)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adamax])
def test_fisher_without_moments_is_refused_at_once(name: str, kind: Any) -> None:
    with pytest.raises(
        UserError, match=rf"^optimizer: {kind.__name__} holds no second moments .* allowed: Adam \|"
    ):
        Loop(name, optimizer=lambda p: kind(p, lr=1e-2), **FISHER[name])


def test_fisher_without_moments_of_anothers_optimizer_is_refused_when_it_ranks() -> None:
    class Own(torch.optim.SGD):
        """Not one of torch's."""

    loop = Loop("isp_plus", optimizer=lambda p: Own(p, lr=1e-2, momentum=0.9))
    with pytest.raises(UserError, match="score: fisher needs the second moments"):
        loop.run()


@pytest.mark.parametrize("name", [*CARRIED, taylor])
def test_moments_of_a_training_before_move_no_zero(name: Any) -> None:
    """`run` checks the zeros at each step."""

    def used(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(parameters, lr=3e-3)
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return optimizer

    loop = Loop(**of(name), optimizer=used).run()
    assert loop.pruner.sparsity == whole_loop(name).pruner.sparsity


def test_the_rate_of_ones_own_loop_is_not_restarted() -> None:
    with pytest.raises(UserError, match=r"^cycles: 5, but the learning rate is the loop's own"):
        Loop("gmp")
    with pytest.raises(
        UserError, match=r"^cycles: 3, but .* allowed: 1 .*, or instant_soup\.prune"
    ):
        instant_soup.InstantSoupCallback("isp_plus", cycles=3)


def test_any_optimizer_will_do_without_fisher() -> None:
    for kind in ("progressive", "movement", "granet", taylor):
        sgd = Loop(**of(kind), optimizer=lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9))
        assert sgd.run().pruner.done
        for name, kept in sgd.pruner.mask.items():
            momentum = sgd.optimizer.state[sgd.model.get_parameter(name)]["momentum_buffer"]
            assert not momentum[~kept].any()


class Mixing(torch.optim.AdamW):
    """Moves all of a matrix where a part of it has a gradient, and keeps codes in place of moments.

    As Muon does, and 8-bit Adam.
    """

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.data.add_(1e-3)
            self.state[parameter]["state1"] = torch.full_like(parameter, 7, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["one_shot", "progressive", "granet", "movement", "platon"])
@pytest.mark.parametrize("kind", [Mixing, "Muon"])
def test_zeros_stay_with_optimizers_that_move_them(name: str, kind: Any) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        if kind is Mixing:
            return Mixing(parameters, lr=3e-3)
        return torch.optim.Muon([p for p in parameters if p.ndim == 2], lr=3e-3)

    loop = Loop(**of(name), optimizer=make).run()  # which looks at the zeros after each step
    assert loop.pruner.done and loop.pruner.sparsity == pytest.approx(0.75, abs=1e-3)
    for parameter in loop.model.parameters() if kind is Mixing else ():
        assert (loop.optimizer.state[parameter]["state1"] == 7).all()


class Both:
    """Two optimisers, of which the loop gives its pruner the first alone."""

    def __init__(self, parameters: Any, kind: Any) -> None:
        parameters = list(parameters)
        vectors = [p for p in parameters if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(vectors, lr=3e-3)
        self.other = kind([p for p in parameters if p.ndim == 2], lr=3e-3)

    def step(self) -> None:
        self.optimizer.step()
        self.other.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()
        self.other.zero_grad()


@pytest.mark.parametrize("name", ["one_shot", "progressive", "granet", "movement", "platon"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon])
def test_zeros_stay_where_another_optimizer_trains_the_matrices(name: str, kind: Any) -> None:
    loop = Loop(**of(name), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    both = Both(loop.model.parameters(), kind)
    loop.optimizer, loop.schedule = both, torch.optim.lr_scheduler.ConstantLR(both.optimizer)
    loop.pruner = instant_soup.Pruner(
        loop.model, both.optimizer, steps=STEPS, sparsity=0.75, batches=loader(), loss=loss,
        **of(name),
    )  # fmt: skip
    assert loop.run().pruner.done  # which looks at the zeros after each step
    assert loop.pruner.sparsity == pytest.approx(0.75, abs=1e-3)


def test_the_learning_rate_is_the_optimizers_before_a_warm_up() -> None:
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    own = {"steps": STEPS, "batches": loader(), "loss": loss}
    assert optimizer.param_groups[0]["lr"] == 0
    assert instant_soup.Pruner(model, optimizer, **own).run.recipe.learning_rate == 2e-3
    given = instant_soup.Pruner(model, optimizer, learning_rate=1e-4, **own)
    assert given.run.recipe.learning_rate == 1e-4


def test_trainings_beside_the_loop_are_by_the_settings_that_are_given() -> None:
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    own = {"clip_norm": 0.7, "precision": "bf16", "seed": 4}
    pruner = instant_soup.Pruner(
        model, optimizer, steps=STEPS, batches=loader(), loss=loss, epoch=5, **own
    )
    assert {name: getattr(pruner.run.recipe, name) for name in own} == own
    assert pruner.run.steps_per_epoch == 5


def test_it_works_with_accelerate(tmp_path: Any) -> None:
    from accelerate import Accelerator

    plain = Loop("movement", every=2).run()
    for resumed in (False, True):
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        loop = Loop("movement", every=2)
        loop.model, loop.optimizer = accelerator.prepare(loop.model, loop.optimizer)
        loop.pruner = instant_soup.Pruner(
            loop.model, loop.optimizer, method="movement", steps=STEPS, sparsity=0.75, every=2
        )
        accelerator.register_for_checkpointing(loop.pruner, loop.schedule)
        if resumed:
            accelerator.load_state(str(tmp_path / "state"))
            assert_same(plain, loop.run(9))
        else:
            loop.run(0, 9)
            accelerator.save_state(str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": None}, "batches: isp trains beside the loop"),
        ({"loss": None}, "loss: isp trains beside the loop"),
        ({"method": "snip", "batches": None}, "batches: snip trains beside the loop or takes"),
        ({"method": "grasp", "loss": None}, "loss: grasp trains beside the loop or takes"),
        ({"sparsity": 0.0}, "sparsity: 0.0 is not allowed; allowed: a number more than 0"),
        ({"steps": 0}, "steps: 0 is not allowed"),
        ({"steps": 3}, "mask_finding: 0.3: 4 rounds in 3 steps; allowed: more steps in all"),
        ({"score": "best"}, "score: 'best' is not allowed; allowed: magnitude | fisher"),
        ({"every": 2}, "every: no setting of isp; it takes: compression_rate"),
        ({"method": "nothing"}, "method: unknown nothing"),
        ({"method": "dense", "every": 2}, "every: no setting of dense; it takes: none"),
        ({"method": "movement", "begin": 0.9}, "begin: 0.9 is not before end 0.7"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not allowed"),
        ({"prunable": lambda name, p: False}, "nothing to prune"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes: dict, words: str) -> None:
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    own = {"steps": STEPS, "sparsity": 0.75, "batches": loader(), "loss": loss, **changes}
    with pytest.raises(UserError) as caught:
        instant_soup.Pruner(model, torch.optim.AdamW(model.parameters()), **own)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())


def test_without_denoisers_no_batches_are_needed() -> None:
    assert Loop(denoisers=0, batches=None, loss=None).run().pruner.done


def test_a_state_of_another_run_is_refused() -> None:
    state = Loop("movement", every=2).run(0, 3).pruner.state_dict()
    with pytest.raises(UserError, match="resume: its method is movement; allowed: granet"):
        Loop("granet", resume=state)
    with pytest.raises(UserError, match=r"resume: its sparsity is 0\.75; allowed: 0\.5"):
        Loop("movement", sparsity=0.5, resume=state)
    with pytest.raises(UserError, match="resume: its every is 2; allowed: 4"):
        Loop("movement", every=4, resume=state)
    with pytest.raises(UserError, match="resume: its retrain is all; allowed: norms_and_biases"):
        Loop("movement", every=2, retrain="norms_and_biases", resume=state)
    with pytest.raises(UserError, match="resume: a state of other matrices"):
        Loop("movement", every=2, prunable=lambda name, p: name == "5.weight", resume=state)


@pytest.mark.parametrize("name", ["one_shot", "gmp", "movement", "smp", "platon"])
def test_from_the_last_mask_on_only_biases_and_the_head_train(name: str) -> None:
    if name == "smp":
        with pytest.raises(UserError, match="retrain: norms_and_biases: smp trains nothing after"):
            Loop(**of(name), retrain="norms_and_biases")
        return
    loop, trains = Loop(**of(name), retrain="norms_and_biases"), {"5.weight"}
    trains |= {name for name, p in loop.model.named_parameters() if p.ndim == 1}
    step = 0
    while not loop.pruner.done:
        assert all(p.requires_grad for p in loop.model.parameters())
        loop.run(step, step + 1)
        step += 1
    assert (step == 0) == (name == "one_shot")
    before = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    loop.run(step, step + 2)
    for n, p in loop.model.named_parameters():
        assert p.requires_grad == (n in trains) != torch.equal(p, before[n]), n
        assert (p in loop.optimizer.state) == (n in trains), n
    kept = loop.states()
    loop.run(step + 2)
    assert all(p.requires_grad for p in loop.model.parameters())  # the loop is over
    again = Loop(**of(name), retrain="norms_and_biases")
    for part, state in zip((again.model, again.optimizer, again.schedule), kept, strict=False):
        part.load_state_dict(state)
    again.pruner.load_state_dict(kept[3])
    assert_same(loop, again.run(step + 2))


@pytest.mark.parametrize("frozen", ["all", "some"])
@pytest.mark.parametrize("name", ["one_shot", "gmp"])
def test_what_is_unfrozen_later_is_masked_too(name: str, frozen: str) -> None:
    """As people train a head first, and then all."""
    loop = Loop(**of(name))
    matrices = [loop.model.get_parameter(n) for n in loop.pruner.mask]
    for one in matrices if frozen == "all" else matrices[:1]:
        one.requires_grad_(False)
    again = instant_soup.Pruner(
        loop.model, loop.optimizer, steps=STEPS, sparsity=0.75, batches=loader(), loss=loss,
        **of(name),
    )  # fmt: skip
    loop.pruner, before = again, [m.detach().clone() for m in matrices]
    loop.run(0, 2)
    for one in matrices:
        one.requires_grad_(True)
    loop.run(2)
    assert masks.count(loop.pruner.mask)[0] == masks.keep_count(loop.pruner.mask, 0.75)
    assert not any(torch.equal(m, old) for m, old in zip(matrices, before, strict=True))


@pytest.mark.parametrize("name", ["gmp", "movement"])
def test_a_roll_back_to_before_the_last_mask_lets_all_train(name: str) -> None:
    """From a step with frozen matrices back to one without, in one process."""
    loop = Loop(**of(name), retrain="norms_and_biases")
    loop.run(0, 6)
    kept = loop.states()
    loop.run(6)
    end = {n: w.clone() for n, w in loop.model.state_dict().items()}
    loop = Loop(**of(name), retrain="norms_and_biases")
    step = 0
    while not loop.pruner.done:
        loop.run(step, step + 1)
        step += 1
    for part, state in zip((loop.model, loop.optimizer, loop.schedule), kept, strict=False):
        part.load_state_dict(state)
    loop.pruner.load_state_dict(kept[3])
    loop.run(6)
    assert all(torch.equal(w, end[n]) for n, w in loop.model.state_dict().items())


def test_adapters_are_not_for_a_foreign_loop() -> None:
    with pytest.raises(UserError, match=r"^retrain: mask_lora trains matrices .*prune$"):
        Loop("one_shot", retrain="mask_lora")


def test_a_state_is_of_a_whole_step() -> None:
    model = perceptron()
    pruner = instant_soup.Pruner(
        model, torch.optim.AdamW(model.parameters()), method="progressive", steps=48
    )
    loss(model, next(iter(loader()))).backward()
    pruner.after_backward()
    with pytest.raises(UserError, match=r"^state_dict: called in the middle of step 0; allowed: a"):
        pruner.state_dict()
    pruner.after_step()
    assert pruner.state_dict()["step"] == 1


def test_gradients_that_are_gone_before_their_last_use_are_told() -> None:
    """PLATON multiplies them with the new weights."""
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruner = instant_soup.Pruner(model, optimizer, method="platon", every=2, steps=12)
    with pytest.raises(UserError, match=r"^gradients: all were zero .*; allowed: zero_grad"):
        for batch in loader():
            loss(model, batch).backward()
            pruner.after_backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            pruner.after_step()


DIES = {  # methods that rank by gradients, each in a way of its own
    **{"snip": {}, "grasp": {}, "grasp_absolute": {}, "isp_plus": {}},
    **{"lamp": {"score": "fisher"}, "layer_budgets": {"score": "fisher", "budget": "global"}},
    "granet": {"score": "fisher", "every": 3},
}


@pytest.mark.parametrize("name", DIES)
def test_weights_without_any_gradient_are_not_ranked_by_their_place(name: str) -> None:
    """A last layer of zeros passes no gradient on, so all scores are zero."""
    model = perceptron()
    for parameter in model[-1].parameters():
        nn.init.zeros_(parameter).requires_grad_(False)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    with pytest.raises(UserError, match=r"^gradients: all are zero, so weights have no scores"):
        pruner = instant_soup.Pruner(
            model, optimizer, method=name, steps=STEPS, sparsity=0.5, batches=loader(), loss=loss,
            **DIES[name],
        )  # fmt: skip
        for (batch,) in data():
            loss(model, batch).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.after_step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ["snip", "grasp_absolute"])
def test_frozen_matrices_in_half_are_ranked_in_full(name: str) -> None:
    """Gradients of a small loss underflow in fp16: half of them would be zero, and tie."""

    def model(kind: torch.dtype) -> nn.Sequential:
        found = perceptron().eval()
        for layer in (found[0], found[3]):
            layer.weight.data = layer.weight.data.half().to(kind)  # the same numbers
            layer.weight.requires_grad_(False)
        return found

    def small(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0]
        for layer in model[:-1]:
            x = layer(x.to(layer.weight.dtype) if isinstance(layer, nn.Linear) else x)
        return 1e-4 * nn.functional.cross_entropy(model[-1](x.float()), batch[1])

    found = []
    for kind in (torch.float32, torch.float16):
        network = model(kind)
        if kind == torch.float16:
            network[0].bias.data, network[3].bias.data = (
                network[i].bias.data.half() for i in (0, 3)
            )
        optimizer = torch.optim.AdamW(network[-1].parameters())
        pruner = instant_soup.Pruner(
            network, optimizer, method=name, steps=STEPS, sparsity=0.5, batches=products_in_order(),
            loss=small,
        )  # fmt: skip
        found.append(pruner.mask)
    assert all(torch.equal(kept, found[1][name]) for name, kept in found[0].items())


def products_in_order() -> Any:
    return torch.utils.data.DataLoader(products(), batch_size=16)


def test_a_moment_has_a_float_for_each_weight() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    assert fits(torch.zeros(2, 3), parameter) and not fits(torch.zeros(()), parameter)
    assert not fits(torch.zeros(2, 3, dtype=torch.uint8), parameter)  # quantised
    assert not fits(3, parameter)


def test_rounds_that_end_with_one_step_prune_one_after_the_other() -> None:
    parameter, found = nn.Parameter(torch.arange(1.0, 5)), []

    def find(i: int) -> masks.Mask:
        found.append(parameter.detach().tolist())
        return {"w": torch.arange(4) > i}

    rounds = PrunesInRounds({"w": torch.ones(4) > 0}, [1, 1, 2], find)
    rounds.attach({"w": parameter}, torch.optim.SGD([parameter], lr=0.0), {})
    rounds.after_step(0)
    assert found == [[1, 2, 3, 4], [0, 2, 3, 4]] and parameter.tolist() == [0, 0, 3, 4]
    assert not rounds.finished
    rounds.after_step(1)
    assert rounds.finished and parameter.tolist() == [0, 0, 0, 4]


def test_rounds_that_end_with_one_step_see_its_gradients() -> None:
    """As `prune` has it: rounds that end with the steps 1, 2, 2 and 3."""
    settings = {"mask_finding": 0.125, "growing": False, "compression_rate": 0.2}
    loop = Loop(taylor, sparsity=0.8, **settings)
    assert loop.pruner.inner.ends.count(2) == 2
    loop.run()
    assert loop.pruner.sparsity == pytest.approx(0.8, abs=1e-3)


def test_a_criterion_is_told_why_there_are_no_gradients_yet() -> None:
    with pytest.raises(UserError, match=r"prunes before the first step.*later first round"):
        Loop(taylor, sparsity=0.8, mask_finding=0.05, compression_rate=0.1)


def test_granets_default_moves_its_mask_in_a_short_training() -> None:
    assert 0 < Loop("granet").run(0, 10).pruner.sparsity < 0.75
