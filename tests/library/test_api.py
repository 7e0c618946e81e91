"""instant_soup.prune on models of one's own: exact sparsity, zeros that stay, resume, its parts."""

import copy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional

import instant_soup
from helpers import PRUNE_SETTINGS, loader, loss, new_classifier, perceptron, products
from instant_soup.errors import UserError
from instant_soup.library import prune
from instant_soup.methods import criteria
from instant_soup.sparsity import masks

pytestmark = pytest.mark.usefixtures("one_thread")


def zeros(model: nn.Module, mask: masks.Mask) -> bool:
    """Whether every pruned weight is exactly zero, and no other."""
    parameters = dict(model.named_parameters())
    return all(torch.equal(parameters[name] != 0, kept) for name, kept in mask.items())


def test_a_perceptron_is_pruned_to_the_weight_and_its_zeros_stay() -> None:
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    pruned = instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    assert pruned.model is model and not model.training
    assert set(pruned.mask) == {"0.weight", "3.weight"}  # all but the last linear layer
    kept, total = masks.count(pruned.mask)
    assert total - kept == round(0.6 * total)
    assert zeros(model, pruned.mask)
    assert all(not torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert (pruned.cost["steps"], pruned.cost["search_steps"]) == (24, 3 * 2 * 3)


def test_it_learns() -> None:
    model = perceptron()
    instant_soup.prune(
        model, loader(), loss, **{**PRUNE_SETTINGS, "steps": 300, "learning_rate": 1e-2}
    )
    x, y = products().tensors
    assert (model(x).argmax(1) == y).float().mean() > 0.9


def test_equal_calls_give_equal_models_and_seeds_differ() -> None:
    one, other, third = (
        instant_soup.prune(perceptron(), loader(), loss, **{**PRUNE_SETTINGS, "seed": seed}).model
        for seed in (3, 3, 4)
    )
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    assert not torch.equal(one.state_dict()["0.weight"], third.state_dict()["0.weight"])


def stop_after(rounds: int, model: nn.Module, folder: Path, **changes: Any) -> None:
    """Start a run and interrupt it when so many rounds are kept."""
    saved, count = prune._Checkpoint.save, 0

    def save_and_stop(self: Any, *what: Any) -> None:
        nonlocal count
        saved(self, *what)
        count += 1
        if count == rounds:
            raise KeyboardInterrupt

    with patch.object(prune._Checkpoint, "save", save_and_stop), pytest.raises(KeyboardInterrupt):
        instant_soup.prune(
            model, loader(), loss, checkpoint=folder, **{**PRUNE_SETTINGS, **changes}
        )


@pytest.mark.parametrize(
    ("rounds", "score"), [(1, "magnitude"), (2, "magnitude"), (3, "magnitude"), (2, "fisher")]
)
def test_a_stopped_call_goes_on_to_the_very_same_result(
    tmp_path: Path, rounds: int, score: str
) -> None:
    own = {**PRUNE_SETTINGS, "score": score}
    whole = instant_soup.prune(perceptron(), loader(), loss, **own)
    stop_after(rounds, perceptron(), tmp_path, score=score)
    assert list(tmp_path.iterdir())
    resumed = instant_soup.prune(perceptron(), loader(), loss, checkpoint=tmp_path, **own)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert all(torch.equal(kept, resumed.mask[name]) for name, kept in whole.mask.items())
    assert resumed.cost["steps"] == 24 and resumed.cost["search_steps"] == 18
    assert not list(tmp_path.iterdir())  # a finished run is not gone on with


@pytest.mark.parametrize(("seed", "rate"), [(0, 1e-3), (1, 3e-3)])
def test_a_checkpoint_of_other_settings_or_weights_is_not_taken_up(
    tmp_path: Path, seed: int, rate: float
) -> None:
    stop_after(2, perceptron(), tmp_path)
    changed = {**PRUNE_SETTINGS, "learning_rate": rate}
    with_it = instant_soup.prune(perceptron(seed), loader(), loss, checkpoint=tmp_path, **changed)
    without = instant_soup.prune(perceptron(seed), loader(), loss, **changed)
    for name, weight in with_it.model.state_dict().items():
        assert torch.equal(weight, without.model.state_dict()[name])


def test_a_head_drawn_anew_does_not_keep_a_call_from_going_on(tmp_path: Path) -> None:
    whole = instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS)
    stop_after(2, perceptron(), tmp_path)
    model = perceptron()
    nn.init.zeros_(model.get_parameter("5.weight"))  # the last map is not pruned
    resumed = instant_soup.prune(model, loader(), loss, checkpoint=tmp_path, **PRUNE_SETTINGS)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])


def test_tied_and_channels_last_weights_can_be_kept(tmp_path: Path) -> None:
    def model() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
        net = net.to(memory_format=torch.channels_last)
        net[3].weight = net[2].weight
        return net

    torch.manual_seed(0)
    x, one = torch.randn(6, 2, 2, 2), model()

    def error(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return m(batch).square().mean()

    pruned = instant_soup.prune(one, [x], error, checkpoint=tmp_path, **PRUNE_SETTINGS)
    assert zeros(one, pruned.mask)


def test_gradients_of_before_do_not_enter() -> None:
    plain, stale = perceptron(), perceptron()
    loss(stale, next(iter(loader()))).backward()
    for model in (plain, stale):
        instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, stale.state_dict()[name])


def test_without_denoisers_it_is_progressive_pruning_and_one_round_one_shot() -> None:
    model = perceptron()
    first = {n: p.detach().clone() for n, p in prune.choose(model).items()}
    pruned = instant_soup.prune(
        model, loader(), loss,
        **{**PRUNE_SETTINGS, "denoisers": 0, "compression_rate": 0.9, "mask_finding": 0.0},
    )  # fmt: skip
    expected = masks.keep_largest(
        {n: w.abs() for n, w in first.items()}, masks.keep_count(first, 0.6)
    )
    assert all(torch.equal(pruned.mask[n], kept) for n, kept in expected.items())


def test_without_denoisers_the_fisher_mask_is_that_of_the_networks_own_moments() -> None:
    model, generator = perceptron(), torch.Generator().manual_seed(0)
    matrices = prune.choose(model)
    moments = {n: torch.rand(w.shape, generator=generator) for n, w in matrices.items()}
    state = prune.State(prune.weights_of(model), second_moments=moments)
    rounds = prune.plan_rounds(60, 0.6, 0.3, 0.5, 0, 1, "union", "fisher")
    found = prune.find_mask(
        model, state, masks.full(matrices), [], loss, rounds, 0, {}, prune.Cost()
    )  # no batch is looked at
    expected = criteria.fisher(matrices, moments, 0.3)
    assert all(torch.equal(found[n], kept) for n, kept in expected.items())


@pytest.mark.parametrize("denoisers", [0, 2])
def test_fisher_prunes_to_the_weight_and_otherwise_than_magnitude(denoisers: int) -> None:
    found = {}
    for score in ("magnitude", "fisher"):
        own = {**PRUNE_SETTINGS, "denoisers": denoisers, "score": score}
        pruned = instant_soup.prune(perceptron(), loader(), loss, **own)
        kept, total = masks.count(pruned.mask)
        assert total - kept == round(PRUNE_SETTINGS["sparsity"] * total)
        assert zeros(pruned.model, pruned.mask)
        found[score] = pruned.mask
    assert masks.distance(found["magnitude"], found["fisher"]) > 0


def test_fisher_of_frozen_matrices_is_refused() -> None:
    model = perceptron()
    name = next(iter(prune.choose(model)))
    model.get_parameter(name).requires_grad_(False)
    with pytest.raises(UserError, match=f"{name} has none"):
        instant_soup.prune(model, loader(), loss, **{**PRUNE_SETTINGS, "score": "fisher"})


def test_a_bert_is_pruned_in_its_blocks(tiny_bert: Path) -> None:
    model = new_classifier(tiny_bert, 2, 0)
    ids = torch.randint(5, 20, (32, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids[i : i + 8], "labels": (ids[i : i + 8, 1] > 12).long()}
               for i in range(0, 32, 8)]  # fmt: skip
    pruned = instant_soup.prune(model, batches, lambda m, b: m(**b).loss, **PRUNE_SETTINGS)
    assert len(pruned.mask) == 12 and all(".layer." in name for name in pruned.mask)
    assert zeros(model, pruned.mask)


def test_multihead_attention_is_pruned_whole() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(4, 6, 16)

    def error(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(m(batch), batch)

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruned = instant_soup.prune(model, [x], error, **PRUNE_SETTINGS)
    kinds = {name.split(".", 2)[2] for name in pruned.mask}
    assert kinds == {"self_attn.in_proj_weight", "self_attn.out_proj.weight",
                     "linear1.weight", "linear2.weight"}  # fmt: skip
    assert zeros(model, pruned.mask)
    for name, kept in pruned.mask.items():
        assert (dict(model.named_parameters())[name] != before[name])[kept].any()


def test_layers_in_a_list_are_no_blocks() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)])
            self.attend = nn.MultiheadAttention(2, 1, kdim=4, vdim=6)
            self.head = nn.Linear(2, 2)

    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    wanted = {f"layers.{i}.weight" for i in range(3)} | {f"attend.{name}" for name in names}
    assert set(prune.choose(Heads())) == wanted


def test_batches_move_as_what_they_are() -> None:
    class Pair(NamedTuple):
        x: torch.Tensor
        words: str

    tensor = torch.ones(2)
    batch = {"a": [tensor, Pair(tensor, "b")], "c": defaultdict(list, {"d": (tensor,)})}
    moved = prune.to_device(batch, torch.device("meta"))
    assert isinstance(moved["a"][1], Pair) and moved["a"][1].words == "b"
    assert moved["c"]["new"] == [] and moved["c"]["d"][0].device.type == "meta"
    assert moved["a"][0].device.type == moved["a"][1].x.device.type == "meta"
    assert tensor.device.type == "cpu" and batch["a"][0] is tensor


def test_a_predicate_chooses_what_is_pruned() -> None:
    model = perceptron()
    pruned = instant_soup.prune(
        model, loader(), loss, prunable=lambda name, p: name == "5.weight", **PRUNE_SETTINGS
    )
    assert set(pruned.mask) == {"5.weight"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "sparsity: 1.0"),
        ({"compression_rate": 0}, "compression_rate: 0"),
        ({"mask_finding": 1.0}, "mask_finding: 1.0"),
        ({"combine": "best"}, "union | intersection | vote"),
        ({"score": "best"}, "score: 'best' is not allowed; allowed: magnitude | fisher"),
        ({"score": "fisher", "mask_finding": 0.0}, "mask_finding: 0.0 prunes before the first"),
        ({"steps": 3}, "steps: 3"),
        ({"denoisers": -1}, "denoisers: -1"),
        ({"look_ahead": 0}, "look_ahead: 0"),
        ({"precision": "fp16"}, "precision: 'fp16' is not allowed; allowed: auto"),
        ({"learning_rate_range": (0, 1)}, "learning_rate_range: [0, 1]"),
        ({"clip_norm": 0}, "clip_norm: 0"),
        ({"prunable": lambda name, p: False}, "nothing to prune"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_training(changes: dict, words: str) -> None:
    def no_step(*_: Any) -> torch.Tensor:
        raise AssertionError("it trained")

    with pytest.raises(UserError) as caught:
        instant_soup.prune(perceptron(), loader(), no_step, **{**PRUNE_SETTINGS, **changes})
    assert words in str(caught.value)


def test_batches_that_run_out_are_refused() -> None:
    with pytest.raises(UserError, match="cannot be iterated twice"):
        instant_soup.prune(perceptron(), iter(loader()), loss, **PRUNE_SETTINGS)
    with pytest.raises(UserError, match="allowed: at least one batch"):
        instant_soup.prune(perceptron(), [], loss, **PRUNE_SETTINGS)


def test_a_parameter_that_no_loss_reaches_stays_as_it_is() -> None:
    model = perceptron()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    assert torch.equal(model.unused, torch.ones(3))


def test_a_matrix_that_no_loss_reaches_is_pruned_all_the_same() -> None:
    model = perceptron()
    model.add_module("spare", nn.Linear(32, 32))

    def through_the_others(m: Any, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(nn.Sequential(*list(m)[:-1])(batch[0]), batch[1])

    names = ("0.weight", "spare.weight")
    pruned = instant_soup.prune(
        model, loader(), through_the_others, prunable=lambda n, _: n in names, **PRUNE_SETTINGS
    )
    assert set(pruned.mask) == set(names) and zeros(model, pruned.mask)


def test_a_name_that_is_not_there_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = instant_soup.nothing


def test_importing_the_package_imports_nothing_heavy() -> None:
    check = "import sys, instant_soup; sys.exit('torch' in sys.modules)"
    source = Path(instant_soup.__file__).parent.parent
    subprocess.run([sys.executable, "-c", check], env={"PYTHONPATH": str(source)}, check=True)


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert"])
def test_other_text_encoders_are_pruned_in_their_blocks(kind: str) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"max_position_embeddings": 20}
    widths = {
        "Roberta": {"hidden_size": 32, "intermediate_size": 64},
        "DistilBert": {"dim": 32, "hidden_dim": 64},
    }
    config = getattr(transformers, f"{kind}Config")(**sizes, **widths[kind], num_labels=2)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    ids = torch.randint(5, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "labels": (ids[:, 1] > 12).long()}]
    pruned = instant_soup.prune(model, batches, lambda m, b: m(**b).loss, **PRUNE_SETTINGS)
    assert len(pruned.mask) == 2 * 6 and all(".layer." in name for name in pruned.mask)
    assert zeros(model, pruned.mask)


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_vision_transformers_are_pruned_in_their_blocks(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "timm":
        import timm

        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)
    else:
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
        config = ViTConfig(num_attention_heads=2, intermediate_size=64, num_labels=3, **sizes)
        model = ViTForImageClassification(config)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 3

    def cross_entropy(m: nn.Module, batch: Any) -> torch.Tensor:
        outputs = m(batch[0])
        return functional.cross_entropy(getattr(outputs, "logits", outputs), batch[1])

    pruned = instant_soup.prune(model, [(images, labels)], cross_entropy, **PRUNE_SETTINGS)
    assert len(pruned.mask) == (2 * 4 if kind == "timm" else 2 * 6)
    assert zeros(model, pruned.mask)
