"""Pruning within transformers.Trainer: exact sparsity, zeros that stay, resume."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import instant_soup
from helpers import CALLBACK_SETTINGS, Sentences, new_classifier, trainer
from instant_soup.errors import UserError
from instant_soup.library import model as library_model
from instant_soup.library.trainer import _epoch, trainers_loss
from instant_soup.methods.base import Method
from instant_soup.methods.grasp import GraSP
from instant_soup.methods.isp import ISP
from instant_soup.methods.registry import methods
from instant_soup.methods.snip import SNIP
from instant_soup.sparsity import masks, scores

pytestmark = pytest.mark.usefixtures("one_thread")


class Stop(TrainerCallback):
    """Ends training after some steps, as a crash would, with a checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
        return control


def zeros(model: nn.Module, mask: masks.Mask) -> bool:
    """Whether every pruned weight is exactly zero, and no other."""
    parameters = dict(model.named_parameters())
    return all(torch.equal(parameters[name] != 0, kept) for name, kept in mask.items())


def test_the_trainers_model_is_pruned_to_the_weight_and_its_zeros_stay(
    tmp_path: Path, tiny_bert: Path
) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    callback = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, model, callback)
    run.train()
    assert callback.pruner.inner.ends == [4, 12]
    kept, total = masks.count(callback.mask)
    assert len(callback.mask) == 12 and total - kept == round(0.6 * total)
    assert zeros(model, callback.mask)
    assert (callback.cost.steps, callback.cost.search_steps) == (0, 2 * 2 * 3)
    parameters = dict(model.named_parameters())
    for name, here in callback.mask.items():
        assert (parameters[name] != before[name])[here].float().mean() > 0.9
        moments = run.optimizer.state[parameters[name]]
        assert not moments["exp_avg"][~here].any() and not moments["exp_avg_sq"][~here].any()
    assert not any(p._backward_hooks for p in parameters.values())


def taylor(weights: dict, gradients: dict, state: Any) -> dict:
    return {n: (w * gradients[n]).abs() for n, w in weights.items()}


OBJECTS = {"snip": SNIP(batches=2), "grasp": GraSP(batches=2)}
ROUNDS = {"compression_rate": 0.3, "mask_finding": 0.5}
# The settings of each carried method for so short a run.
CARRIED: dict[Any, dict[str, Any]] = {
    taylor: ROUNDS,
    **{name: {} for name, one in methods().items() if one.pruner is not Method.pruner},
    **{"isp": CALLBACK_SETTINGS, "isp_plus": ROUNDS, "progressive": ROUNDS},
    **{"movement": {"every": 2}, "granet": {"every": 3}, "rigl": {"every": 3}},
    **{"platon": {"every": 2}, "ac_dc": {"phase": 0.1}, "gmp": {"prunes": 6, "cycles": 1}},
}


@pytest.mark.parametrize("name", CARRIED)
def test_every_carried_method_prunes_to_the_weight(
    tmp_path: Path, tiny_bert: Path, name: Any
) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    own = {**CARRIED[name], "sparsity": 0.75}
    callback = instant_soup.InstantSoupCallback(OBJECTS.get(name, name), **own)
    trainer(tmp_path, model, callback).train()
    kept, total = masks.count(callback.mask)
    assert total - kept == (0 if name == "dense" else round(0.75 * total))
    parameters = dict(model.named_parameters())
    assert not any(parameters[n].detach()[~here].any() for n, here in callback.mask.items())
    assert not any(p._backward_hooks for p in parameters.values())


@pytest.fixture(scope="module")
def check_resumed(tmp_path_factory: Any, tiny_bert: Path) -> Callable[..., None]:
    """A check that a run stopped at a step and taken up again is the uninterrupted one."""
    uninterrupted: dict[str, tuple[nn.Module, Any]] = {}  # of several steps, by method and settings

    def check(step: int, *method: Any, **settings: Any) -> None:
        def callback() -> Any:
            return instant_soup.InstantSoupCallback(*method, **settings)

        folder = tmp_path_factory.mktemp("run")
        if (key := repr((method, settings))) not in uninterrupted:
            uninterrupted[key] = new_classifier(tiny_bert, 2, 0), callback()
            trainer(folder / "whole", *uninterrupted[key]).train()
        trainer(folder / "cut", new_classifier(tiny_bert, 2, 0), callback(), Stop(step)).train()
        resumed, again = new_classifier(tiny_bert, 2, 0), callback()
        run = trainer(folder / "cut", resumed, again)
        run.train(resume_from_checkpoint=str(folder / f"cut/checkpoint-{step}"))
        whole, first = uninterrupted[key]
        assert all(torch.equal(kept, again.mask[name]) for name, kept in first.mask.items())
        for name, weight in whole.state_dict().items():
            assert torch.equal(weight, resumed.state_dict()[name]), name

    return check


@pytest.mark.parametrize("name", ["gmp", "movement", "granet", "layerwise", "random", taylor])
@pytest.mark.parametrize("step", [1, 8, 16, 20])
def test_a_resumed_run_of_any_kind_is_the_uninterrupted_one(
    check_resumed: Callable[..., None], name: Any, step: int
) -> None:
    check_resumed(step, name, sparsity=0.6, **CARRIED[name])


def test_what_zeros_do_not_tell_must_be_in_the_checkpoint(tmp_path: Path, tiny_bert: Path) -> None:
    run = trainer(
        tmp_path, new_classifier(tiny_bert, 2, 0),
        instant_soup.InstantSoupCallback("movement"), Stop(8),
    )  # fmt: skip
    run.train()
    (tmp_path / "checkpoint-8/instant_soup.safetensors").unlink()
    again = instant_soup.InstantSoupCallback("movement")
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), again)
    with pytest.raises(UserError, match=r"resume_from_checkpoint: no .*without which movement"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


@pytest.mark.parametrize("name", ["isp_plus", "movement"])
def test_a_checkpoint_may_have_moved(name: str, tmp_path: Path, tiny_bert: Path) -> None:
    """It is looked for where the Trainer goes on from, not where it saves."""
    whole, again = new_classifier(tiny_bert, 2, 0), new_classifier(tiny_bert, 2, 0)
    soup = instant_soup.InstantSoupCallback(name)
    trainer(tmp_path / "old", whole, soup, save_strategy="steps", save_steps=8).train()
    (tmp_path / "old/checkpoint-8").rename(tmp_path / "kept")
    soup = instant_soup.InstantSoupCallback(name)
    run = trainer(tmp_path / "old", again, soup)
    run.train(resume_from_checkpoint=str(tmp_path / "kept"))
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in whole.state_dict().items())


def test_dense_gradients_add_up_over_accumulated_batches(tmp_path: Path, tiny_bert: Path) -> None:
    """A criterion sees the sum that the optimiser would have, of pruned weights too."""
    seen = []

    def watch(weights: dict, gradients: dict, state: Any) -> dict:
        assert not soup.dense  # the next step's gradients are not added to these
        seen.append({name: g.clone() for name, g in gradients.items()})
        return {name: w.abs() for name, w in weights.items()}

    for size, accumulated in ((8, 1), (4, 2)):
        soup = instant_soup.InstantSoupCallback(watch, sparsity=0.6, **ROUNDS)
        model = new_classifier(tiny_bert, 2, 0)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        run = trainer(tmp_path, model, soup)
        run.args.per_device_train_batch_size = size
        run.args.gradient_accumulation_steps = accumulated
        run.accelerator.gradient_accumulation_steps = accumulated
        run.train()
    assert len(seen) == 4  # two rounds each
    for whole, halves in ((seen[0], seen[2]), (seen[1], seen[3])):
        for name, gradient in whole.items():
            torch.testing.assert_close(halves[name], gradient, rtol=0.05, atol=0.05)
    assert any((g != 0).all() for g in seen[1].values())  # dense after the first prune, too


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        *((2, {}), (4, {}), (20, {})),
        (4, {"score": "fisher", "denoisers": 0}),
        *((4, {"adjust": "last_round"}), (20, {"adjust": "last_round"})),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    check_resumed: Callable[..., None], step: int, changes: dict
) -> None:
    check_resumed(step, **{**CALLBACK_SETTINGS, **changes})


def test_a_checkpoint_pruned_otherwise_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, Stop(20)).train()
    other = instant_soup.InstantSoupCallback(**{**CALLBACK_SETTINGS, "sparsity": 0.5})
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), other)
    with pytest.raises(UserError, match="at step 20; with these settings"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))


def test_look_aheads_leave_the_trainers_random_numbers_alone(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same masks found with and without drawing: dropout and data order must not change."""

    found, ends = ISP.find_mask, []
    quiet = instant_soup.InstantSoupCallback(**{**CALLBACK_SETTINGS, "denoisers": 0})
    curious = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)

    def looking_in_vain(self: ISP, *arguments: Any) -> masks.Mask:
        found(self, *arguments)
        return found(quiet.method, *arguments)

    for soup in (quiet, curious):
        model = new_classifier(tiny_bert, 2, 0)
        trainer(tmp_path, model, soup).train()
        ends.append(model.state_dict())
        monkeypatch.setattr(ISP, "find_mask", looking_in_vain)
    assert curious.cost.search_steps == 2 * 2 * 3
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        ({"max_grad_norm": 0.25}, {"clip_norm": 0.25, "precision": "fp32"}),
        ({"max_grad_norm": 0.0, "bf16": True}, {"clip_norm": 1e30, "precision": "bf16"}),
    ],
)
def test_a_look_ahead_trains_as_the_trainer_does_by_the_callbacks_seed(
    tmp_path: Path, tiny_bert: Path, arguments: dict[str, Any], own: dict[str, Any]
) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS, seed=5)
    model = new_classifier(tiny_bert, 2, 0)
    with pytest.warns(UserWarning, match="training ended early"):
        trainer(tmp_path, model, soup, Stop(1), **arguments).train()
    own |= {"learning_rate": 1e-2, "seed": 5}
    run = soup.pruner.run
    assert {name: getattr(run.recipe, name) for name in own} == own
    assert isinstance(run._batches.sampler, torch.utils.data.RandomSampler)
    assert run._batches.batch_size == 8


def test_own_loss_and_batches_are_what_a_look_ahead_takes(tmp_path: Path, tiny_bert: Path) -> None:
    asked = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        asked.append(batch["name"])
        return model(**batch["rows"]).loss

    rows = torch.utils.data.default_collate([Sentences()[i] for i in range(4)])
    own = instant_soup.InstantSoupCallback(
        **CALLBACK_SETTINGS, loss=loss, batches=[{"name": "own", "rows": rows}]
    )
    trainer(tmp_path, new_classifier(tiny_bert, 2, 0), own).train()
    assert asked == ["own"] * 12


def test_a_look_ahead_takes_the_loss_of_a_trainers_subclass(
    tmp_path: Path, tiny_bert: Path
) -> None:
    """The model's own has none: its labels are named otherwise."""
    from transformers import Trainer

    class Renamed(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            asked.append((model is self.model, "truth" in inputs))
            logits = model(input_ids=inputs["input_ids"]).logits
            return nn.functional.cross_entropy(logits, inputs.pop("truth"))

    class Rows(Sentences):
        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            own = super().__getitem__(row)
            return {"input_ids": own["input_ids"], "truth": own["labels"]}

    asked: list[Any] = []
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup)
    run.__class__, run.train_dataset, run.args.remove_unused_columns = Renamed, Rows(), False
    run.train()
    assert asked.count((False, True)) == 2 * 2 * 3 and asked.count((True, True)) == 24
    assert zeros(run.model, soup.mask)


@pytest.mark.parametrize("how", ["compute_loss_func", "label_smoothing_factor", "nothing"])
def test_the_loss_is_what_the_calling_trainer_is_told(
    tmp_path: Path, tiny_bert: Path, how: str
) -> None:
    from transformers import Trainer
    from transformers.trainer_pt_utils import LabelSmoother

    class Asked(Trainer):
        def ask(self) -> Any:
            return trainers_loss()

    def turned(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        assert num_items_in_batch == len(labels)
        return nn.functional.cross_entropy(outputs.logits, 1 - labels)

    model = new_classifier(tiny_bert, 2, 0).eval()
    run = trainer(tmp_path, model)
    run.__class__ = Asked
    if how == "compute_loss_func":
        run.compute_loss_func = turned
    elif how == "label_smoothing_factor":
        run.label_smoother = LabelSmoother(epsilon=0.9)
    batch = torch.utils.data.default_collate([Sentences()[i] for i in range(8)])
    logits, labels = model(**batch).logits, batch["labels"]
    smooth = 0.1 * nn.functional.cross_entropy(logits, labels) - 0.9 * logits.log_softmax(-1).mean()
    expected = {
        "compute_loss_func": nn.functional.cross_entropy(logits, 1 - labels),
        "label_smoothing_factor": smooth,
        "nothing": nn.functional.cross_entropy(logits, labels),
    }
    torch.testing.assert_close(run.ask()(model, dict(batch)), expected[how])
    assert trainers_loss() is None  # nobody is calling


def test_frozen_matrices_are_pruned_all_the_same(tmp_path: Path, tiny_bert: Path) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layer.0" not in name)
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    trainer(tmp_path, model, soup).train()
    assert zeros(model, soup.mask) and masks.sparsity(soup.mask) == pytest.approx(0.6, abs=1e-4)


class Thaw(TrainerCallback):
    """Lets all train from a step on, as people do once the head is trained."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        trainer["model"].requires_grad_(state.global_step >= 3)
        trainer["model"].classifier.requires_grad_(True)


def test_matrices_that_are_unfrozen_later_stay_pruned(tmp_path: Path, tiny_bert: Path) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    soup = instant_soup.InstantSoupCallback("one_shot", sparsity=0.6)
    run = trainer(tmp_path, model, Thaw())
    run.add_callback(soup)
    # The Trainer's own would leave out what is frozen now.
    run.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    run.train()
    assert zeros(model, soup.mask) and masks.sparsity(soup.mask) == pytest.approx(0.6, abs=1e-4)
    assert not any(
        torch.equal(p[soup.mask[n]], before[n][soup.mask[n]])
        for n, p in model.named_parameters()
        if n in soup.mask
    )


@pytest.mark.parametrize(("batches", "accumulation", "steps"), [(10, 4, 3), (8, 4, 2), (1, 4, 1)])
def test_a_pass_over_the_data_has_the_trainers_steps(
    batches: int, accumulation: int, steps: int
) -> None:
    """The last of them has fewer batches, as transformers has it."""
    loader, arguments = range(batches), SimpleNamespace(gradient_accumulation_steps=accumulation)
    assert _epoch(arguments, loader) == steps


def test_fisher_prunes_by_the_trainers_own_moments(tmp_path: Path, tiny_bert: Path) -> None:
    """One round: its mask is that of w² · v at its step, by hand."""
    once = {**CALLBACK_SETTINGS, "compression_rate": 0.6, "denoisers": 0, "score": "fisher"}
    soup = instant_soup.InstantSoupCallback(**once)
    trainer(tmp_path / "pruned", new_classifier(tiny_bert, 2, 0), soup).train()
    (end,) = soup.pruner.inner.ends
    model = new_classifier(tiny_bert, 2, 0)
    run = trainer(tmp_path / "dense", model, Stop(end))
    run.train()
    matrices = library_model.choose(model)
    moments = {name: run.optimizer.state[p]["exp_avg_sq"] for name, p in matrices.items()}
    expected = scores.fisher(matrices, moments, 0.6)
    assert all(torch.equal(soup.mask[name], kept) for name, kept in expected.items())


def test_fisher_without_moments_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS, score="fisher")
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup)
    run.args.optim = "sgd"
    with pytest.raises(UserError, match=r"^optimizer: SGD holds no second moments"):
        run.train()


def test_a_run_that_ends_before_the_last_prune_says_so(tmp_path: Path, tiny_bert: Path) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, Stop(6))
    with pytest.warns(UserWarning, match="ended early: pruned to 30% of 60%"):
        run.train()


@pytest.mark.parametrize("accumulated", [1, 4])
def test_a_denoisers_subset_is_of_the_rows_however_a_step_adds_them_up(
    tmp_path: Path, tiny_bert: Path, accumulated: int
) -> None:
    seen: set[tuple] = set()

    def watch(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.update(map(tuple, batch["input_ids"].tolist()))
        return model(**batch).loss

    soup = instant_soup.InstantSoupCallback(
        "isp",
        sparsity=0.3,
        loss=watch,
        compression_rate=0.3,
        denoisers=1,
        look_ahead=12,
        subset=0.5,
    )
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulated}
    trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, **size).train()
    assert len(seen) == 32  # of 64, in 8 of the 16 batches


@pytest.mark.parametrize("method", ["progressive", "random"])
def test_weights_that_were_zero_before_are_not_taken_for_pruned_ones(
    tmp_path: Path, tiny_bert: Path, method: str
) -> None:
    """A unit that was taken out has zeros that no gradient reaches."""

    def model() -> nn.Module:
        found = new_classifier(tiny_bert, 2, 0)
        for layer in found.bert.encoder.layer:
            for weight in (layer.intermediate.dense.weight, layer.output.dense.weight.T):
                weight.data[:4] = 0.0
            layer.intermediate.dense.bias.data[:4] = 0.0
        return found

    rounds = {"compression_rate": 0.1, "mask_finding": 0.5} if method == "progressive" else {}
    whole, again = (
        instant_soup.InstantSoupCallback(method, sparsity=0.3, **rounds) for _ in range(2)
    )
    every = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, model(), whole, **every).train()
    trainer(tmp_path, model(), again).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(kept, again.mask[name]) for name, kept in whole.mask.items())


class Break(TrainerCallback):
    """Breaks off training after some steps, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("again", ["callback", "nothing"])
def test_a_model_whose_training_broke_off_trains_anew(
    tmp_path: Path, tiny_bert: Path, again: str
) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    first = instant_soup.InstantSoupCallback("one_shot", sparsity=0.6, retrain="norms_and_biases")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, model, first, Break(6)).train()
    assert zeros(model, first.mask) and first.pruner.frozen
    if again == "callback":
        second = instant_soup.InstantSoupCallback("random", sparsity=0.3)
        trainer(tmp_path, model, second).train()
    else:
        first.release()
        trainer(tmp_path, model).train()
    parameters = dict(model.named_parameters())
    assert all(p.requires_grad and not p._backward_hooks for p in parameters.values())
    # What the first training had pruned trains, but for what the second has.
    kept = second.mask if again == "callback" else masks.full(first.mask)
    for name, mask in first.mask.items():
        grown = kept[name] & ~mask
        assert grown.any() and parameters[name].detach()[grown].count_nonzero() > 0.9 * grown.sum()


def test_two_callbacks_in_one_trainer_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    both = [instant_soup.InstantSoupCallback("one_shot", sparsity=0.5) for _ in range(2)]
    with pytest.raises(UserError, match="two InstantSoupCallbacks in one Trainer; allowed: one"):
        trainer(tmp_path, new_classifier(tiny_bert, 2, 0), *both).train()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fp16": True}, "fp16: not allowed beside pruning, as it scales the gradients"),
        (
            {"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"},
            "the best checkpoint may be older than the last prune; allowed: false",
        ),
    ],
)
def test_what_would_undo_the_pruning_is_refused(
    tmp_path: Path, tiny_bert: Path, changes: dict, words: str
) -> None:
    soup = instant_soup.InstantSoupCallback(**CALLBACK_SETTINGS)
    run = trainer(tmp_path, new_classifier(tiny_bert, 2, 0), soup, eval_dataset=Sentences())
    for name, value in changes.items():
        setattr(run.args, name, value)
    with pytest.raises(UserError, match=words):
        run.train()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "sparsity: 1.0"),
        ({"combine": "best"}, "union | intersection | vote"),
        ({"score": "best"}, "magnitude | fisher"),
        ({"sparsty": 0.5}, "sparsty: no setting of isp; it takes: compression_rate"),
        ({"method": "lth"}, "lth trains more than once, which a loop of one's own cannot"),
        ({"method": "random_init"}, "random_init needs the row of isp"),
    ],
)
def test_bad_settings_are_refused_at_once(changes: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        own = {} if "method" in changes else CALLBACK_SETTINGS
        instant_soup.InstantSoupCallback(**{**own, **changes})
    assert words in str(caught.value)


def test_from_the_last_mask_on_only_biases_norms_and_head_train(
    tmp_path: Path, tiny_bert: Path
) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    callback = instant_soup.InstantSoupCallback(
        "one_shot", sparsity=0.6, retrain="norms_and_biases"
    )
    trainer(tmp_path, model, callback).train()
    for name, parameter in model.named_parameters():
        was = before[name] * callback.mask.get(name, torch.tensor(1))
        head = name in ("bert.pooler.dense.weight", "classifier.weight")
        assert torch.equal(parameter, was) == (parameter.ndim > 1 and not head), name
        assert parameter.requires_grad
    with pytest.raises(UserError, match="retrain: mask_lora trains matrices"):
        instant_soup.InstantSoupCallback("one_shot", retrain="mask_lora")
