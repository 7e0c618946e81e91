"""Causal language models of several architectures: what is prunable, and that files stay theirs."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from helpers import CAUSAL, save_causal
from instant_soup.config.sections import Recipe
from instant_soup.data.batches import Blocks
from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.models import base as models
from instant_soup.models import causal, hugging_face, matrices, memory
from instant_soup.models.forward import logits_of
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel
from instant_soup.sparsity import masks
from instant_soup.training import loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.state import State, load_state, save_state

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


def base_model(folder: Path) -> BaseModel:
    return BaseModel("tiny", "causal", "local", path=str(folder))


@pytest.fixture(scope="module", params=sorted(CAUSAL))
def prepared(request, tmp_path_factory) -> tuple[str, Path, Path, matrices.Weights]:
    """An architecture, a checkpoint of it, its base folder, and what is prunable of it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = save_causal(folder / "checkpoint", request.param)
    (folder / "base").mkdir()
    found = causal.prepare_base(base_model(checkpoint), folder / "base")
    return request.param, checkpoint, folder / "base", found


def blocks_of(rows: int, length: int = 12) -> Blocks:
    draws = torch.Generator().manual_seed(0)
    return Blocks(torch.randint(0, 24, (rows, length), generator=draws, dtype=torch.int32))


def network_of(base: Path) -> Any:
    return causal.classifier(base, causal.start_weights(base, Head()))


def test_matrices_of_the_blocks_are_prunable_and_nothing_else(prepared) -> None:
    kind, _, base, found = prepared
    network = network_of(base)
    assert set(found) == set(matrices.prunable(network))
    each = {"gpt2": 4, "opt": 6, "mixtral": 7}.get(kind, 7)
    assert len(found) == 2 * each
    assert matrices.share_of(network, found)[0] > 0.97
    words = ("embed", "wte", "wpe", "lm_head", "norm", "ln_")
    assert not [name for name in found if any(word in name for word in words)]


def test_a_base_folder_is_known_and_predicts_what_its_checkpoint_does(prepared) -> None:
    _, checkpoint, base, _ = prepared
    assert models.family(base) is causal
    own = hugging_face.transformers_auto().AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    batch = blocks_of(3).rows(torch.arange(3))
    with torch.no_grad():
        expected, found = (
            own(input_ids=batch["input_ids"]).logits,
            logits_of(network_of(base).eval(), batch),
        )
    assert torch.allclose(expected, found, atol=1e-6)


def test_matrices_are_outputs_by_inputs(prepared) -> None:
    """Of GPT-2, too, whose files have them the other way round."""
    kind, checkpoint, base, found = prepared
    in_file, here = load_file(checkpoint / causal.WEIGHTS), causal.read_weights(base)
    for name, weight in found.items():
        assert torch.equal(here[name], weight)
        if kind != "mixtral":  # whose experts lie one by one in files
            stored = in_file.get(name, in_file.get(name.removeprefix("transformer.")))
            assert torch.equal(here[name], stored.T if kind == "gpt2" else stored)
        assert here[name].is_contiguous()
    again = load_file(base / causal.WEIGHTS)
    assert causal.turned(base, here).keys() == again.keys()
    assert all(torch.equal(w, again[n]) for n, w in causal.turned(base, here).items())


def test_flops_are_those_that_torch_counts(prepared) -> None:
    kind, _, base, found = prepared
    network = network_of(base).eval()
    network.set_attn_implementation("eager")
    if kind == "mixtral":
        network.set_experts_implementation("eager")  # torch does not count grouped products
    batch = blocks_of(3).rows(torch.arange(3))
    inside, others = models.forward_flops(network, found, batch)
    with FlopCounterMode(display=False) as counter:
        logits_of(network, batch)
    assert inside + others == counter.get_total_flops()
    assert 0 < others < inside


def test_a_step_keeps_ties_zeros_and_its_state(prepared, tmp_path: Path) -> None:
    kind, _, base, found = prepared
    network = network_of(base)
    mask = {name: w.abs() >= w.abs().median() for name, w in found.items()}
    state = State({name: w.clone() for name, w in network.state_dict().items()})
    state.prune(mask)
    network = causal.classifier(base, state.weights)
    recipe = Recipe(learning_rate=1e-2, batch_size=4, precision="fp32")
    after = loop.train(
        network, state, mask, blocks_of(8), recipe, Cost(), last=2, total=2, label="train"
    )
    assert all((after.weights[name][~kept] == 0).all() for name, kept in mask.items())
    untrained = [n for n in mask if torch.equal(after.weights[n][mask[n]], found[n][mask[n]])]
    assert untrained == []
    for other in causal.tied(network):
        same = dict(network.named_parameters(remove_duplicate=False))[other]
        assert any(same is p for p in network.parameters())
    assert bool(causal.tied(network)) == (kind in ("gpt2", "opt", "llama"))
    save_state(tmp_path / "state", after)
    again = causal.classifier(base, load_state(tmp_path / "state", False).weights).state_dict()
    assert all(torch.equal(w, again[name]) for name, w in after.weights.items())


def test_perplexity_is_that_of_another_computation(tmp_path: Path) -> None:
    """Token by token, each from all before it in its block, and from nothing else."""
    network = hugging_face.transformers_auto().AutoModelForCausalLM.from_pretrained(
        save_causal(tmp_path / "llama", "llama")
    ).eval()  # fmt: skip
    split = blocks_of(3, 6)
    surprises = []
    for block in split.input_ids.long():
        for i in range(1, 6):
            with torch.no_grad():
                logits = network(input_ids=block[None, :i]).logits[0, -1]
            surprises.append(-functional.log_softmax(logits, -1)[block[i]].item())
    expected = math.exp(sum(surprises) / len(surprises))
    found = metrics.scores(*loop.predict(network, split, "fp32"))
    assert found == {"perplexity": pytest.approx(expected, rel=1e-5)}
    batch = split.rows(torch.arange(3))
    loss = loop.loss_of(logits_of(network, batch), batch["labels"])
    assert math.exp(loss.item()) == pytest.approx(expected, rel=1e-5)


def test_random_weights_are_of_the_seed(prepared) -> None:
    _, _, base, found = prepared
    one, other, again = (causal.random_weights(base, Head(seed=seed)) for seed in (0, 1, 0))
    assert one.keys() == other.keys() and all(
        one[name].shape == found[name].shape for name in found
    )
    assert all(torch.equal(one[n], again[n]) and not torch.equal(one[n], other[n]) for n in found)


def test_an_index_names_the_files_of_weights_alone(tmp_path: Path, monkeypatch) -> None:
    """Of one file, too: vLLM takes every .safetensors of a folder that has no index."""
    weights = {"a.weight": torch.ones(4, 2), "b.weight": torch.ones(8, dtype=torch.bfloat16)}
    for most, files in ((100, ["model"] * 2), (33, [f"model-0000{i}-of-00002" for i in (1, 2)])):
        folder = tmp_path / f"{most}"
        folder.mkdir()
        save_file({"a.weight": torch.ones(1, dtype=torch.uint8)}, folder / "mask.safetensors")
        monkeypatch.setattr(causal, "SHARD", most)
        causal.write_weights(folder, weights)
        index = read_json(folder / "model.safetensors.index.json")
        assert index["metadata"]["total_size"] == 32 + 16
        assert index["weight_map"].keys() == weights.keys()
        assert sorted(index["weight_map"].values()) == [f"{file}.safetensors" for file in files]


def test_lacking_weights_are_no_language_model(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "llama", "llama")
    weights = load_file(folder / causal.WEIGHTS)
    lost = next(name for name in weights if "q_proj" in name)
    save_file(
        {n: w for n, w in weights.items() if n != lost}, folder / causal.WEIGHTS, {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"lacks 1 weights of a language model, first {lost}"):
        causal.load_pretrained(folder)


@pytest.mark.parametrize(("kind", "matrix"), [("llama", "q_proj"), ("gpt2", "c_fc.weight")])
def test_weights_of_another_shape_are_named(tmp_path: Path, kind: str, matrix: str) -> None:
    folder = save_causal(tmp_path / kind, kind)
    weights = load_file(folder / causal.WEIGHTS)
    name = next(name for name in weights if matrix in name)
    rows, columns = weights[name].shape
    weights[name] = weights[name][:5].clone()
    save_file(weights, folder / causal.WEIGHTS, {"format": "pt"})
    message = rf"{name} is 5 × {columns} in the files, and {rows} × {columns} by config\.json"
    with pytest.raises(UserError, match=message):
        causal.load_pretrained(folder)


def test_an_encoder_is_no_language_model(tiny_bert: Path) -> None:
    with pytest.raises(UserError, match=r"lacks .* weights of a language model, first .*; allowed"):
        causal.load_pretrained(tiny_bert)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "llama", "llama", vocab_size=8)
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match=r"tokenizer gives the token \d+, its vocab_size is 8"):
        causal.prepare_base(base_model(folder), tmp_path / "base")


def test_a_model_that_does_not_fit_is_refused_with_numbers(tmp_path: Path, monkeypatch) -> None:
    folder = save_causal(tmp_path / "llama", "llama")
    count = sum(w.numel() for w in load_file(folder / causal.WEIGHTS).values())
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    message = rf"llama: {count:,} weights take {16 * count:,} bytes, .* the 1,000 that are free"
    with pytest.raises(UserError, match=message):
        causal.load_pretrained(folder)


def test_masks_are_counted_over_blocks_alone(prepared) -> None:
    _, _, _, found = prepared
    assert masks.count(masks.full(found))[1] == sum(w.numel() for w in found.values())
