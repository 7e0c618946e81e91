"""A model of one's own as it comes: wrapped, tied, narrow, adapted; or such as cannot be pruned."""

import copy
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import instant_soup
from helpers import PRUNE_SETTINGS, loader, loss, new_classifier, perceptron
from instant_soup.errors import UserError
from instant_soup.library.model import choose, in_full_width, unwrapped

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_SHOT: dict[str, Any] = {
    **{"steps": 4, "learning_rate": 3e-3, "sparsity": 0.75},
    **{"method": "one_shot", "precision": "fp32"},
}


def zeros(model: nn.Module, mask: dict[str, torch.Tensor]) -> bool:
    parameters = dict(model.named_parameters())
    return all(torch.equal(parameters[name] != 0, kept) for name, kept in mask.items())


def no_step(*_: Any) -> torch.Tensor:
    raise AssertionError("it trained")


def refusals(model: nn.Module, **changes: Any) -> list[str]:
    """What `prune` and `Pruner` say of a model: the same line."""
    said = []
    own = {"steps": 24, "sparsity": 0.6, "batches": loader(), "loss": no_step, **changes}
    with pytest.raises(UserError) as caught:
        instant_soup.prune(model, learning_rate=1e-3, **own)
    said.append(str(caught.value))
    with pytest.raises(UserError) as caught:
        instant_soup.Pruner(model, torch.optim.SGD(list(model.parameters())[:1], lr=0.1), **own)
    said.append(str(caught.value))
    return said


# Which matrices there are


class Scaled(nn.Module):
    """A block whose branch is scaled by a vector that is laid along an image's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.gamma = nn.Linear(8, 8), nn.Parameter(torch.full((8, 1, 1), 1e-5))


def test_a_scale_along_channels_is_a_vector() -> None:
    model = nn.Sequential(nn.ModuleList(Scaled() for _ in range(2)), nn.Linear(8, 2))
    assert set(choose(model)) == {"0.0.map.weight", "0.1.map.weight"}


def test_body_and_head_in_a_sequential_are_no_two_blocks() -> None:
    def part(*sizes: int) -> nn.Sequential:
        maps = [nn.Linear(*pair) for pair in pairwise(sizes)]
        return nn.Sequential(*(layer for one in maps for layer in (one, nn.ReLU())))

    body, head = part(8, 16, 16), nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    assert set(choose(nn.Sequential(body, head))) == {"0.0.weight", "0.2.weight", "1.0.weight"}
    stages = nn.Sequential(*(part(8, 8) for _ in range(3)), nn.Linear(8, 2))
    assert "3.weight" not in choose(nn.Sequential(stages[:3], stages[3]))


def test_heads_that_pass_for_blocks_are_warned_of() -> None:
    heads = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(3)]
    body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    model = nn.ModuleDict({"body": body, "heads": nn.ModuleList(heads)})
    with pytest.warns(UserWarning, match="only 19% of the weights .* look.* repeated blocks"):
        assert all(name.startswith("heads.") for name in choose(model))


def test_a_sparsity_that_leaves_nothing_is_refused() -> None:
    said = refusals(perceptron(), sparsity=0.99999, method="one_shot")
    assert len(set(said)) == 1
    assert said[0].startswith("sparsity: 0.99999 leaves none of the ")


# Weights that are computed, at each forward pass, from others


def pruned_by_torch(layer: nn.Linear) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pruned_by_torch, "torch.nn.utils.prune.remove(module, 'weight')"),
        (weight_norm, "torch.nn.utils.remove_weight_norm(module, 'weight')"),
        (spectral_norm, "torch.nn.utils.remove_spectral_norm(module, 'weight')"),
        (parametrizations.weight_norm, "remove_parametrizations(module, 'weight')"),
        (parametrizations.orthogonal, "remove_parametrizations(module, 'weight')"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_no_parameter_is_refused_with_what_makes_it_one(
    change: Callable[[nn.Linear], Any], words: str
) -> None:
    model = perceptron()
    change(model[3])
    for said in refusals(model):
        assert said.startswith("model: 3.weight is computed") and words in said and "\n" not in said
    blocks = nn.ModuleDict({"layers": nn.ModuleList(perceptron() for _ in range(2))})
    change(blocks["layers"][1][3])
    with pytest.raises(UserError, match=r"model: layers\.1\.3\.weight is computed"):
        choose(blocks)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_head_that_is_not_pruned_may_be_computed() -> None:
    model = perceptron()
    weight_norm(model[5])
    pruned = instant_soup.prune(model, loader(), loss, **ONE_SHOT)
    assert set(pruned.mask) == {"0.weight", "3.weight"} and zeros(model, pruned.mask)


# Frozen, or without numbers


def test_a_model_that_is_frozen_whole_is_refused() -> None:
    for said in refusals(perceptron().requires_grad_(False)):
        assert said.startswith("model: all of its parameters are frozen")


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_trained(off: Any) -> None:
    model = perceptron()
    with off():
        for said in refusals(model):
            assert said.startswith("model: nothing trains under torch.no_grad() or inference_mode")


def test_a_model_that_cannot_be_copied_is_refused_where_copies_train() -> None:
    model = perceptron()
    model.lock = threading.Lock()
    with pytest.raises(UserError, match=r"^model: this method .* cannot pickle '_thread.lock'"):
        instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    assert instant_soup.prune(model, loader(), loss, **ONE_SHOT).sparsity == pytest.approx(0.75)


@pytest.mark.parametrize("method", ["isp", "progressive", "one_shot", "snip", "granet", "random"])
def test_a_frozen_body_is_pruned_under_a_head_that_trains(method: str) -> None:
    model = perceptron()
    model[:3].requires_grad_(False)
    model[3].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    own = {**ONE_SHOT, "steps": 24, "method": method}
    if method == "isp":
        own |= {"denoisers": 2, "look_ahead": 3}
    pruned = instant_soup.prune(model, loader(), loss, **own)
    assert pruned.sparsity == pytest.approx(0.75, abs=1e-3)
    for name, kept in pruned.mask.items():
        assert torch.equal(model.get_parameter(name), before[name] * kept)


@pytest.mark.parametrize(
    "changes",
    [
        *({"method": name} for name in ("isp_plus", "movement", "platon", "smp", "bip")),
        *({"method": name, "score": "fisher"} for name in ("granet", "rigl", "ac_dc")),
    ],
)
def test_what_ranks_by_gradients_refuses_frozen_matrices_before_any_step(changes: dict) -> None:
    model = perceptron()
    model[3].requires_grad_(False)
    for said in refusals(model, **changes):
        assert "ranks by gradients, and 3.weight has none" in said


def test_a_criterion_that_asks_for_gradients_of_frozen_matrices_is_told() -> None:
    model = perceptron()
    model[0].requires_grad_(False)

    def taylor(weights: dict, gradients: dict, state: Any) -> dict:
        return {name: (w * gradients[name]).abs() for name, w in weights.items()}

    with pytest.raises(UserError, match=r"method: 0\.weight has no gradient, as it is frozen"):
        instant_soup.prune(model, loader(), loss, **{**ONE_SHOT, "steps": 24, "method": taylor})


class FullyShardedDataParallel(nn.Sequential):
    """Named as torch's first kind, which only starts on a GPU."""


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4), nn.Linear(4, 2))


def quantised() -> nn.Module:
    model = perceptron()
    model[0].weight = nn.Parameter(model[0].weight.to(torch.int8), requires_grad=False)
    return model


def diverged() -> nn.Module:
    model = perceptron()
    nn.init.constant_(model[3].weight[1:2], float("nan"))
    return model


@torch.inference_mode()
def made_for_inference() -> nn.Module:
    return perceptron()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (made_for_inference, "model: 0.weight was made under torch.inference_mode()"),
        (lambda: perceptron().to("meta"), "model: 0.weight is on the meta device"),
        (lazy, "model: 0.weight has no shape yet (lazy)"),
        (
            lambda: FullyShardedDataParallel(nn.Linear(4, 4), nn.Linear(4, 2)),
            "model: FullyShardedDataParallel lays matrices end to end; allowed: fully_shard(model)",
        ),
        (quantised, "model: 0.weight is of torch.int8, which cannot be pruned weight by weight"),
        (diverged, "model: 3.weight holds NaN or infinite numbers"),
        (lambda: nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 2)), "nothing to prune in this"),
        (lambda: nn.Sequential(nn.BatchNorm1d(3)), "nothing to prune in this model"),
    ],
)
def test_weights_that_are_no_numbers_to_rank_are_refused(model: Any, words: str) -> None:
    for said in refusals(model()):
        assert words in said and "\n" not in said


@pytest.mark.parametrize("model", [None, "bert", loss, nn.Linear])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match=r"allowed: a torch\.nn\.Module"):
        instant_soup.prune(model, loader(), no_step, steps=24, learning_rate=1e-3)


# Adapters


class LowRank(nn.Module):
    """A linear map with a low-rank adapter, of the names that peft gives."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def adapted(tiny_bert: Path) -> Any:
    """A classifier with adapters on query and value, all else frozen but the head."""
    model = new_classifier(tiny_bert, 2, 0)
    model.requires_grad_(False).classifier.requires_grad_(True)
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.query, attention.value = LowRank(attention.query), LowRank(attention.value)
    return model


def test_beside_adapters_nothing_is_pruned_unasked(tmp_path: Path, tiny_bert: Path) -> None:
    for said in refusals(adapted(tiny_bert)):
        assert "base_layer" in said and "merge_and_unload()" in said and "`prunable`" in said
    soup = instant_soup.InstantSoupCallback("progressive", sparsity=0.8)
    with pytest.raises(UserError, match="belongs to an adapter"):
        trainer_of(tmp_path, adapted(tiny_bert), soup).train()


def trainer_of(folder: Path, model: nn.Module, soup: Any) -> Any:
    from helpers import trainer

    return trainer(folder, model, soup)


def test_base_matrices_are_pruned_beside_adapters_where_asked(tiny_bert: Path) -> None:
    model = adapted(tiny_bert)
    ids = torch.randint(5, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": (ids[:, 1] > 12).long()}
    before = copy.deepcopy(model.state_dict())
    pruned = instant_soup.prune(
        model, [batch], lambda m, b: m(**b).loss,
        prunable=lambda name, p: name.endswith("base_layer.weight"), **ONE_SHOT,
    )  # fmt: skip
    assert len(pruned.mask) == 4 and pruned.sparsity == pytest.approx(0.75, abs=1e-3)
    moved = [n for n, w in model.state_dict().items() if not torch.equal(w, before[n])]
    assert any("lora_B" in name for name in moved) and zeros(model, pruned.mask)


# Tied and shared


class Tied(nn.Module):
    """Blocks of which the second has the first one's matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.layers[1][0].weight = self.layers[0][0].weight
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("method", ["one_shot", "isp", "lth", "movement", "granet"])
def test_a_tied_matrix_is_pruned_once_and_stays_tied(method: str, tmp_path: Path) -> None:
    own = {**ONE_SHOT, "steps": 24, "method": method}
    own |= {"denoisers": 2, "look_ahead": 2} if method == "isp" else {}
    pruned = instant_soup.prune(Tied(), loader(), loss, **own)
    model: Any = pruned.model
    assert set(pruned.mask) == {"layers.0.0.weight", "layers.2.0.weight"}
    assert model.layers[0][0].weight is model.layers[1][0].weight
    kept = sum(int(model.layers[i][0].weight.count_nonzero()) for i in (0, 2))
    assert kept <= 32 and pruned.sparsity == pytest.approx(0.75)
    pruned.save(tmp_path / "saved")


def test_a_module_that_stands_twice_is_pruned_once() -> None:
    model = perceptron()
    model.insert(5, model[3])
    pruned = instant_soup.prune(model, loader(), loss, **ONE_SHOT)
    assert set(pruned.mask) == {"0.weight", "3.weight"} and zeros(model, pruned.mask)


# Wrapped


def test_a_compiled_model_is_pruned_by_its_own_names(tmp_path: Path) -> None:
    plain = perceptron()
    expected = instant_soup.prune(plain, loader(), loss, **PRUNE_SETTINGS)
    for one in (PRUNE_SETTINGS, {**PRUNE_SETTINGS, "denoisers": 1}):
        model = torch.compile(perceptron(), backend="eager")
        pruned = instant_soup.prune(model, loader(), loss, **one)
        assert pruned.model is model and zeros(unwrapped(model), pruned.mask)
        if one is PRUNE_SETTINGS:
            assert all(torch.equal(kept, pruned.mask[n]) for n, kept in expected.mask.items())
    pruned.save(tmp_path / "saved")
    from safetensors.torch import load_file

    assert load_file(tmp_path / "saved/model.safetensors").keys() == plain.state_dict().keys()


def test_a_data_parallel_model_is_pruned_by_its_own_names() -> None:
    model = nn.DataParallel(perceptron())
    pruned = instant_soup.prune(model, loader(), loss, **PRUNE_SETTINGS)
    expected = instant_soup.prune(perceptron(), loader(), loss, **PRUNE_SETTINGS)
    assert pruned.model is model and zeros(model.module, pruned.mask)
    assert all(torch.equal(kept, pruned.mask[n]) for n, kept in expected.mask.items())


# Half the width of fp32


def narrow_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0].bfloat16()).float(), batch[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_model_trains_in_fp32_and_comes_back_as_it_was(dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    before = copy.deepcopy(model.state_dict())
    own = {**ONE_SHOT, "learning_rate": 2e-5, "steps": 300, "precision": "auto"}
    pruned = instant_soup.prune(model, loader(), narrow_loss, **own)
    assert {p.dtype for p in model.parameters()} == {dtype} and zeros(model, pruned.mask)
    kept = torch.cat([pruned.mask[n].flatten() for n in pruned.mask])
    moved = torch.cat([(model.state_dict()[n] != before[n]).flatten() for n in pruned.mask])
    assert moved[kept].float().mean() > 0.5  # none, where steps are lost in the last bit


def test_a_narrow_model_is_as_it_was_after_an_error() -> None:
    model = perceptron().bfloat16()
    with pytest.raises(ZeroDivisionError), in_full_width(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        _ = 1 / 0
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_narrow_model_in_a_foreign_loop_is_refused() -> None:
    model = perceptron().bfloat16()
    with pytest.raises(UserError, match=r"model: 0\.weight trains in torch\.bfloat16"):
        instant_soup.Pruner(
            model, torch.optim.AdamW(model.parameters()), method="one_shot", steps=4
        )


# More than linear layers


class Looked(nn.Module):
    """A block that looks most of its weights up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.map = nn.Embedding(16, 4), nn.Linear(4, 4)


def test_a_small_part_of_the_blocks_does_not_pass_for_them() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(Looked() for _ in range(2))})
    for said in refusals(model):
        assert said.startswith("prunable: 20% of the weights in the model's blocks are prunable")
        assert "layers.0.table.weight is not" in said and "or a function that names" in said
    assert len(choose(model, lambda name, p: "map.weight" in name)) == 2


def test_without_blocks_convolutions_and_recurrent_nets_count_too() -> None:
    convolved = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert set(choose(convolved)) == {"0.weight"}
    told = nn.ModuleDict({"read": nn.LSTM(4, 8), "say": nn.Linear(8, 2)})
    assert set(choose(told)) == {"read.weight_ih_l0", "read.weight_hh_l0"}
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4)

    def error(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return model["say"](model["read"](batch)[0][-1]).square().mean()

    pruned = instant_soup.prune(told, [x], error, **ONE_SHOT)
    assert zeros(told, pruned.mask) and pruned.cost["flops"] > 0


def language_model(kind: str) -> Any:
    """A tiny classifier of a kind of transformers whose blocks hold weights of other shapes."""
    import transformers

    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_labels": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    own: dict[str, dict[str, Any]] = {
        "Mixtral": {"num_local_experts": 4, "pad_token_id": 0},
        "Qwen2Moe": {
            **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
            **{"num_experts": 4, "num_experts_per_tok": 2, "pad_token_id": 0},
        },
        "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
        "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0},
    }
    mixture = kind in ("Mixtral", "Qwen2Moe")
    given = {**(sizes if mixture else {"vocab_size": 30, "num_labels": 2}), **own[kind]}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**given)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe", "XLNet", "GPT2"])
def test_the_sparsity_asked_for_is_that_of_the_blocks(kind: str) -> None:
    model = language_model(kind)
    ids = torch.randint(5, 20, (8, 12), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": (ids[:, 1] > 12).long()}
    own = {**ONE_SHOT, "sparsity": 0.8}
    pruned = instant_soup.prune(model, [batch], lambda m, b: m(**b).loss, **own)
    stack = {"XLNet": "layer.", "GPT2": ".h."}.get(kind, ".layers.")
    named = {n: p for n, p in model.named_parameters() if stack in n and p.ndim > 1}
    zero = sum(int((p == 0).sum()) for p in named.values()) / sum(p.numel() for p in named.values())
    assert 0.75 < zero < 0.81 and pruned.sparsity == pytest.approx(0.8, abs=1e-3)
    assert pruned.cost["flops"] > 0


@pytest.mark.parametrize("method", ["progressive", "isp_plus", "movement", "granet"])
def test_weights_in_another_order_of_memory_keep_their_zeros(method: str) -> None:
    """The fused optimiser takes moments as they lie, and the state has them in another order."""
    torch.manual_seed(0)
    convolved = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    x = torch.randn(8, 3, 4, 4)

    def error(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch), torch.arange(8) % 2)

    own = {**ONE_SHOT, "steps": 24, "method": method}
    usual = instant_soup.prune(copy.deepcopy(convolved), [x], error, **own)
    other = convolved.to(memory_format=torch.channels_last)
    pruned = instant_soup.prune(other, [x], error, **own)
    parameters = dict(other.named_parameters())
    assert not any(parameters[n].detach()[~kept].any() for n, kept in pruned.mask.items())
    for name, weight in usual.model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, atol=1e-3, rtol=1e-2)
