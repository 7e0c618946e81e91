"""Language models pruned without training: known answers, exact counts, the same when streamed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from helpers import CAUSAL, ROOT, save_causal
from instant_soup import cli
from instant_soup.data.batches import Blocks
from instant_soup.errors import UserError
from instant_soup.library import block_by_block, one_shot
from instant_soup.library.block_by_block import METHODS, Model, Written, run_blocks
from instant_soup.models import causal, hugging_face, memory
from instant_soup.sparsity import masks
from instant_soup.sparsity.scores import magnitude
from instant_soup.training.loop import predict
from instant_soup.training.metrics import scores

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")
KINDS = sorted(CAUSAL)


def text(rows: int, seed: int = 0) -> Blocks:
    draws = torch.Generator().manual_seed(seed)
    return Blocks(torch.randint(0, 300, (rows, 16), generator=draws, dtype=torch.int32))


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory) -> Path:
    return save_causal(tmp_path_factory.mktemp(request.param) / request.param, request.param)


def test_dense_blocks_one_by_one_are_the_model(checkpoint: Path) -> None:
    network = hugging_face.transformers_auto().AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = scores(*predict(network, text(5), "fp32"))["perplexity"]
    for streamed in (False, True):
        gone, found = run_blocks(Model(checkpoint, streamed), text(2), text(5))
        assert not gone and found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["gemma3_text", "bloom"])
def test_blocks_that_attend_in_two_ways_or_give_out_tuples_are_the_model(
    tmp_path: Path, kind: str
) -> None:
    test_dense_blocks_one_by_one_are_the_model(save_causal(tmp_path / kind, kind))


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_experts_of_inputs_by_outputs_are_refused(tmp_path: Path, kind: str) -> None:
    """Their rows are inputs: what goes by row, or by what a matrix multiplies, would be wrong."""
    folder = save_causal(tmp_path / kind, kind)
    for load in (Model, causal.load_pretrained):
        with pytest.raises(UserError, match=f"{kind}: the matrices of its experts are inputs × o"):
            load(folder)


def test_blocks_that_hand_on_more_than_their_output_are_refused(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "rwkv", "rwkv")
    with pytest.raises(UserError, match="model: rwkv: its blocks cannot be run one by one: "):
        run_blocks(Model(folder), text(2), text(2))


@pytest.mark.parametrize("kind", ["falcon", "jetmoe"])
def test_linear_layers_by_other_names_are_watched(tmp_path: Path, kind: str) -> None:
    model, mask = Model(save_causal(tmp_path / kind, kind)), {}
    assert run_blocks(model, text(4, 1), text(2), "wanda", 0.5, mask=mask)[0] == 0.5
    assert all((kept.sum(-1) * 2 == kept.shape[-1]).all() for kept in mask.values())


def test_matrices_that_multiply_out_of_sight_are_named(tmp_path: Path) -> None:
    model, named = Model(save_causal(tmp_path / "mamba", "mamba")), r"mixer\.conv1d"
    others = r"allowed: magnitude \| magnitude-global \| magnitude-rows"
    with pytest.raises(UserError, match=rf"method: wanda: .*{named}.* no linear layer's; {others}"):
        run_blocks(model, text(4, 1), text(2), "wanda", 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_streamed_is_in_memory_to_the_bit(checkpoint: Path, tmp_path: Path, method: str) -> None:
    found = []
    for streamed in (False, True):
        model, folder = Model(checkpoint, streamed), tmp_path / f"{streamed}"
        folder.mkdir()
        mask: masks.Mask = {}
        gone, value = run_blocks(
            model, text(4, 1), text(5), method, 0.5, written=Written(model, folder), mask=mask
        )
        assert gone == 0.5 and masks.count(mask)[0] * 2 == masks.count(mask)[1]
        again = hugging_face.transformers_auto().AutoModelForCausalLM.from_pretrained(folder)
        assert value == pytest.approx(
            scores(*predict(again, text(5), "fp32"))["perplexity"], rel=1e-5
        )
        found.append((mask, value, {f.name: load_file(f) for f in folder.glob("*.safetensors")}))
    (one, a, files), (other, b, same) = found
    assert a == b and all(torch.equal(kept, other[name]) for name, kept in one.items())
    for name, tensors in files.items():
        assert all(torch.equal(t, same[name][key]) for key, t in tensors.items())


def test_a_streamed_block_has_no_memory_outside_its_turn(tmp_path: Path) -> None:
    model = Model(save_causal(tmp_path / "llama", "llama"), streamed=True)
    for i in range(2):
        with model.block(i) as block:
            assert not any(p.is_meta for p in block.parameters())
            others = [b for b in model.blocks if b is not block]
            assert all(p.is_meta for b in others for p in b.parameters())
    assert model._read == {} or not any(".layers." in name for name in model._read)


def first_block(folder: Path, of: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of the dense model's first block, outputs × inputs, and the rows it multiplies.

    Nothing before that block is pruned, so all is known from the dense model.
    """
    network = causal.load_pretrained(folder).eval()
    layer, seen = network.get_submodule(of), []
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        network(input_ids=text(4, 1).input_ids.long())
    return layer.weight.detach(), seen[0]


# A matrix of a llama, and one of GPT-2, which its files have as inputs × outputs.
OF_FIRST_BLOCK = [("llama", "model.layers.0.mlp.down_proj"), ("gpt2", "transformer.h.0.mlp.c_proj")]


@pytest.mark.parametrize(("kind", "of"), OF_FIRST_BLOCK)
def test_wandas_mask_is_that_of_the_inputs_of_its_block(tmp_path: Path, kind: str, of: str) -> None:
    weight, inputs = first_block(save_causal(tmp_path / kind, kind), of)
    mask: masks.Mask = {}
    run_blocks(Model(tmp_path / kind), text(4, 1), text(2), "wanda", 0.5, mask=mask)
    # The norms of inputs that other matrices of the block do not change but by being dense.
    ranks = (weight.abs() * inputs.norm(dim=0)).argsort(1, descending=True).argsort(1)
    assert torch.equal(mask[f"{of}.weight"], ranks < weight.shape[1] // 2)


@pytest.mark.parametrize(("kind", "of"), OF_FIRST_BLOCK)
def test_sparsegpt_settles_one_column_after_the_other(tmp_path: Path, kind: str, of: str) -> None:
    """By plain loops: a column that goes moves those behind it by H⁻¹ of what is not settled."""
    weight, inputs = first_block(save_causal(tmp_path / kind, kind), of)
    (model, folder), mask = (Model(tmp_path / kind), tmp_path / "new"), {}
    folder.mkdir()
    run_blocks(
        model, text(4, 1), text(2), "sparsegpt", 0.5, written=Written(model, folder), mask=mask
    )
    kept, x = mask[f"{of}.weight"], inputs.double()
    h = x.T @ x / len(x)
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
    expected = weight.double().clone()
    for j in range(len(h)):
        inverse = torch.linalg.inv(h[j:, j:])
        for row, stays in zip(expected, kept, strict=True):
            if not stays[j]:
                row[j:] -= row[j].item() / inverse[0, 0] * inverse[0]
    stored = {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    found = stored[f"{of}.weight"]
    assert found.shape == (weight.T if kind == "gpt2" else weight).shape
    found = found.T if kind == "gpt2" else found
    assert torch.allclose(found, expected.float().where(kept, 0.0), rtol=1e-3, atol=1e-5)


def test_a_later_block_is_pruned_by_what_pruned_blocks_give_it(tmp_path: Path) -> None:
    """Of the written model: its second block's first matrix sees what came before, all pruned."""
    model, folder = Model(save_causal(tmp_path / "llama", "llama")), tmp_path / "new"
    mask: masks.Mask = {}
    folder.mkdir()
    run_blocks(model, text(4, 1), text(2), "wanda", 0.7, written=Written(model, folder), mask=mask)
    of = "model.layers.1.self_attn.q_proj"
    weight, dense = first_block(tmp_path / "llama", of)
    _, pruned = first_block(folder, of)
    for inputs, same in ((dense, False), (pruned, True)):
        ranks = (weight.abs() * inputs.norm(dim=0)).argsort(1, descending=True).argsort(1)
        kept = mask[f"{of}.weight"]
        assert torch.equal(kept, ranks < kept.sum(1, keepdim=True)) is same


def test_wandas_mask_of_an_expert_is_that_of_the_tokens_that_come_to_it(tmp_path: Path) -> None:
    network = causal.load_pretrained(save_causal(tmp_path / "mixtral", "mixtral")).eval()
    seen: list[torch.Tensor] = []
    layer = network.model.layers[0].mlp
    layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        network(input_ids=text(4, 1).input_ids.long())
        chosen = (seen[0] @ layer.gate.weight.T).topk(2, dim=1).indices
    mask: masks.Mask = {}
    run_blocks(Model(tmp_path / "mixtral"), text(4, 1), text(2), "wanda", 0.5, mask=mask)
    for expert, weight in enumerate(layer.experts.gate_up_proj):
        inputs = seen[0][(chosen == expert).any(1)]
        assert 0 < len(inputs) < len(seen[0])
        ranks = (weight.abs() * inputs.norm(dim=0)).argsort(1, descending=True).argsort(1)
        assert torch.equal(mask["model.layers.0.mlp.experts.gate_up_proj"][expert], ranks < 16)


def test_an_expert_without_tokens_is_pruned_by_magnitude(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "mixtral", "mixtral", num_experts_per_tok=1)
    weights = load_file(folder / "model.safetensors")
    gate = weights["model.layers.0.block_sparse_moe.gate.weight"]
    gate[1], gate[2:] = -gate[0], 0.0  # one of the first two is above the others
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    mask: masks.Mask = {}
    run_blocks(Model(folder), text(4, 1), text(2), "wanda", 0.5, mask=mask)
    w = weights["model.layers.0.block_sparse_moe.experts.3.w2.weight"].abs()
    ranks = w.argsort(1, descending=True).argsort(1)
    assert torch.equal(mask["model.layers.0.mlp.experts.down_proj"][3], ranks < 32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_patterns_hold_in_every_group(tmp_path: Path, kind: str, method: str) -> None:
    mask: masks.Mask = {}
    again: masks.Mask = {}
    folder = save_causal(tmp_path / kind, kind)
    gone, value = run_blocks(Model(folder), text(4, 1), text(2), method, 0.75, 4, mask=mask)
    assert gone == 0.75
    assert all((kept.reshape(-1, 4).sum(1) == 1).all() for kept in mask.values())
    streamed = Model(folder, streamed=True)
    assert run_blocks(streamed, text(4, 1), text(2), method, 0.75, 4, mask=again)[1] == value
    assert all(torch.equal(kept, again[name]) for name, kept in mask.items())


def test_a_convolution_is_one_matrix(tmp_path: Path) -> None:
    """Of Mamba: channels of four taps, which are not pruned to two each."""
    model, mask = Model(save_causal(tmp_path / "mamba", "mamba")), {}
    assert run_blocks(model, text(1), text(2), "magnitude", 0.5, mask=mask)[0] == 0.5
    name = "backbone.layers.1.mixer.conv1d.weight"
    assert torch.equal(mask[name], magnitude({name: model.read(name)}, 0.5)[name])
    assert mask[name].shape == (64, 1, 4) and mask[name].sum(-1).unique().numel() > 1


def test_all_matrices_together_are_ranked_as_in_memory(tmp_path: Path) -> None:
    """Streamed, one at a time; of bf16, which has many weights of one size."""
    folder = save_causal(tmp_path / "mixtral", "mixtral")
    weights = {n: w.bfloat16() for n, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = Model(folder, streamed=True)
    expected = magnitude({name: model.read(name) for name in model.prunable}, 0.37)
    mask: masks.Mask = {}
    run_blocks(model, text(1), text(2), "magnitude-global", 0.37, mask=mask)
    assert all(torch.equal(kept, expected[name]) for name, kept in mask.items())
    assert mask.keys() == expected.keys()


def test_new_weights_are_rounded_as_their_files_hold_them(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "llama", "llama")
    weights = {n: w.bfloat16() for n, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = Model(folder)
    with model.block(0) as block:
        moved = block_by_block._pruned(
            model, block, f"{model.stack}.0.", lambda name, w, _: (w > 0, w * 1.01), {}
        )
        assert len(list(moved)) == 7
        for name, weight in block.named_parameters():
            before = model.read(f"{model.stack}.0.{name}")
            new = before * 1.01 if weight.ndim == 2 else before
            assert torch.equal(weight, new.bfloat16().float())


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_rows_keep_the_same_share(tmp_path: Path, kind: str) -> None:
    model = Model(save_causal(tmp_path / kind, kind))
    weights = {name: model.read(name) for name in model.prunable}
    mask: masks.Mask = {}
    run_blocks(model, text(1), text(2), "magnitude-rows", 0.75, mask=mask)
    of_fisher = one_shot.best_of_rows({n: w.square() for n, w in weights.items()}, 0.75)
    for name, kept in mask.items():
        assert torch.equal(kept, of_fisher[name])  # of squares, which rank as magnitudes do
        assert (kept.sum(-1) == kept.shape[-1] // 4).all()
        least = weights[name].abs().where(kept, torch.inf).amin(-1)
        assert (least >= weights[name].abs().where(~kept, 0.0).amax(-1)).all()


def test_the_hand_computable_answers() -> None:
    """Two rows of two weights, norms 4 and 1; one row of ones, H = [[2, 1], [1, 2]]."""
    weights = {"w": torch.tensor([[1.0, 2.0], [3.0, 1.0]])}
    wanda = block_by_block.pruner("wanda", weights, 0.5)
    mask, new = wanda("w", weights["w"], torch.tensor([16.0, 1.0]))
    assert mask.tolist() == [[True, False], [True, False]]
    assert new.tolist() == [[1.0, 0.0], [3.0, 0.0]]
    row = {"w": torch.ones(1, 2)}
    damped = torch.tensor([[2.0, 1.0], [1.0, 2.0]]) - 0.02 * torch.eye(2) / 1.01
    mask, new = block_by_block.pruner("sparsegpt", row, 0.5)("w", row["w"], damped)
    assert mask.tolist() == [[False, True]]
    assert new.tolist() == [[0.0, pytest.approx(1.5, abs=1e-2)]]


def test_fisher_is_the_mean_of_squared_gradients(tmp_path: Path) -> None:
    network = causal.load_pretrained(save_causal(tmp_path / "llama", "llama"))
    found = one_shot.mean_squared_gradient(network, text(2))
    name = "model.layers.1.mlp.up_proj.weight"
    weight = dict(network.named_parameters())[name]
    expected = torch.zeros_like(weight)
    for block in text(2).input_ids.long():
        loss = network(input_ids=block[None], labels=block[None]).loss
        expected += torch.autograd.grad(loss, weight)[0].square() / 2
    assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-12)


def test_all_criteria_from_the_command_line(tmp_path: Path, capsys) -> None:
    model, texts = save_causal(tmp_path / "llama", "llama"), tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("\n\n".join(f"the film is fine {i}" for i in range(100)))
    given = ["oneshot", str(model), f"local:{texts}", "--length", "16", "--blocks", "4"]
    given += ["--sparsities", "0.5", "0", "--patterns", "2:4", "--json"]  # dense again
    assert cli.main(given) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == [m for m in one_shot.USUAL for _ in range(3)]
    assert all(row["sparsity"] == pytest.approx(0.5) for row in rows if row["sparsity"])
    dense = [row["perplexity"] for row in rows if not row["sparsity"]]
    assert dense == pytest.approx([dense[0]] * len(dense), rel=1e-5)


@pytest.mark.parametrize("method", ["sparsegpt", "fisher"])
def test_a_kept_model_is_evaluated_as_it_was_measured(
    tmp_path: Path, monkeypatch, capsys, method: str
) -> None:
    """Of bf16 files, whose numbers the moved weights take; from a folder inside a repository."""
    model = save_causal(tmp_path / "mixtral", "mixtral")
    weights = {n: w.bfloat16() for n, w in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(here)
    write_sentences(here / "texts")
    given = ["oneshot", "../mixtral", "local:texts", "--methods", method, "--patterns", "2:4"]
    given += ["--length", "16", "--blocks", "4", "--to", "new", "--json"]
    given += [] if method == "fisher" else ["--stream"]
    assert cli.main(given) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    files = {n for f in Path("new").glob("*.safetensors") for n in load_file(f)}
    assert files == weights.keys()  # nothing else for loaders that take every .safetensors
    assert cli.main(["evaluate", "new", "local:texts", "--precision", "fp32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == {"perplexity": pytest.approx(row["perplexity"], rel=1e-5)}
    assert cli.main(["inspect", "new", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patterns"][1]["compliant"]
    ticket = json.loads(Path("new/ticket.json").read_text())
    assert (ticket["model"], ticket["dataset"]) == ("causal:local:mixtral", "local:texts")
    assert (ticket["method"], ticket["pattern"], ticket["max_length"]) == (method, "2:4", 16)
    assert ticket["calibration_blocks"] == 4
    card = ModelCard.load(Path("new/README.md"))
    assert card.data.pipeline_tag == "text-generation"
    assert f"| perplexity | {row['perplexity']:.4f} |" in card.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--methods", "wand"], "--methods: wand is not allowed; allowed: magnitude | wanda"),
        (["--stream", "--methods", "fisher"], "--stream: fisher needs the gradients of the whole"),
        (["--patterns", "4:2"], "--patterns: '4:2' is not allowed; allowed: N:M with N < M"),
        (["--sparsities", "1"], "--sparsities: 1 is not allowed"),
        (["--to", "new"], "--to: one model is written; allowed: one of --methods at one"),
        (["--length", "33"], "--length: 33 is not allowed; allowed: from 2 to 32"),
        (["--length", "0"], "--length: 0 is not allowed; allowed: from 2 to 32"),
        (["--blocks", "0"], "--blocks: 0 is not allowed; allowed: a whole number from 1"),
        (["--column", "x"], "error: --column: x: text files have no columns; name none"),
        (
            ["--patterns", "3:7", "--methods", "wanda"],
            "--patterns: 7 does not divide the 32 inputs",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch, capsys, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model, texts = save_causal(tmp_path / "llama", "llama"), tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("\n\n".join(f"the film is fine {i}" for i in range(100)))
    length = [] if "--length" in given else ["--length", "16"]
    assert cli.main(["oneshot", str(model), f"local:{texts}", *length, *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train.txt": "a", "test.txt": "fine " * 99}, "16 tokens, and the training text only"),
        ({"train.txt": "fine " * 99, "test.txt": "a"}, "16 tokens, and the test text only"),
        (
            {"a.txt": "the film\n\nis fine"},
            "too few rows (paragraphs: blank lines end them) to cut",
        ),
        ({"a.csv": "x,y\n1,2"}, "--column: name the column of texts; the data has ['x', 'y']"),
        ({}, "error: dataset: "),
        ({}, "has no text: allowed: files .txt, .parquet, .csv, .tsv"),
        (None, "dataset: no folder "),
    ],
)
def test_texts_that_are_none_or_too_short_are_one_line(
    tmp_path: Path, capsys, texts: dict[str, str] | None, message: str
) -> None:
    model, folder = save_causal(tmp_path / "llama", "llama"), tmp_path / "texts"
    for name, content in (texts or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    if texts == {}:
        folder.mkdir()
    assert cli.main(["oneshot", str(model), f"local:{folder}", "--length", "16"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_of_texts_by_its_bare_name_is_guessed(tmp_path: Path, monkeypatch, capsys) -> None:
    model = save_causal(tmp_path / "llama", "llama")
    write_sentences(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["oneshot", str(model), "texts", "--length", "16"]) == 1
    line = "error: dataset: unknown 'texts'; did you mean local:texts? allowed: reviews-text | wiki"
    assert capsys.readouterr().err.startswith(line)


def write_sentences(folder: Path) -> str:
    """A folder with a hundred short paragraphs, as the command line takes it."""
    folder.mkdir()
    (folder / "a.txt").write_text("\n\n".join(f"the film is fine {i}" for i in range(100)))
    return f"local:{folder}"


def spoil(folder: Path, how: str) -> None:
    """Spoil a checkpoint of a llama."""
    file, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(file)
    if how == "lost":
        del weights[name]
    elif how == "cut":
        weights[name] = weights[name][:5].clone()
    elif how == "nan":
        weights[name][0, 0] = torch.nan
    elif how == "quantised":
        weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, file, {"format": "pt"})
    if how == "damaged":
        file.write_bytes(b"abc")
    elif how in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / how).unlink()
    elif how == "older tokenizer":
        whole = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
        (folder / "merges.txt").write_text("\n".join(" ".join(m) for m in whole["merges"]))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        (folder / "tokenizer.json").unlink()
    elif how == "nowhere":
        folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lost", "lacks model.layers.1.mlp.up_proj.weight; allowed: a whole checkpoint"),
        ("cut", "up_proj.weight is 5 × 32 in the files, and 64 × 32 by config.json"),
        ("nan", "up_proj.weight holds NaN or infinity; allowed: weights that are finite"),
        ("quantised", "up_proj.weight is F8_E4M3 in the files; allowed: F64 | F32 | F16 | BF16, a"),
        ("damaged", "model.safetensors cannot be read as safetensors"),
        ("model.safetensors", "llama has no .safetensors weights; allowed: a checkpoint in that"),
        ("config.json", "model: the configuration of "),
        ("tokenizer.json", "llama has no tokenizer (tokenizer.json); allowed: a model's folder"),
        (
            "older tokenizer",
            "llama has no tokenizer.json; allowed: a folder into which transformers",
        ),
        ("nowhere", "llama; allowed: a model's folder | hub:ORG/NAME"),
    ],
)
def test_a_spoilt_checkpoint_is_one_line(tmp_path: Path, capsys, how: str, message: str) -> None:
    model, texts = save_causal(tmp_path / "llama", "llama"), write_sentences(tmp_path / "texts")
    spoil(model, how)
    given = ["oneshot", str(model), texts, "--length", "16", "--sparsities", "0.5"]
    assert cli.main(given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path: Path, capsys) -> None:
    model = save_causal(tmp_path / "llama", "llama", vocab_size=8)
    texts = write_sentences(tmp_path / "texts")
    assert cli.main(["oneshot", str(model), texts, "--length", "16"]) == 1
    assert "its vocab_size is 8; allowed: a model's own tokenizer" in capsys.readouterr().err


def test_what_does_not_fit_is_told_what_it_takes_when_streamed(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    model, texts = save_causal(tmp_path / "llama", "llama"), write_sentences(tmp_path / "texts")
    given = ["oneshot", str(model), texts, "--length", "16", "--sparsities", "0.5", "--methods"]
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    assert cli.main([*given, "sparsegpt"]) == 1
    line = capsys.readouterr().err
    told = re.search(
        r"sparsegpt take ([\d,]+) bytes, .* the 1,000 .*--stream, which takes ([\d,]+)", line
    )
    assert told
    whole, streamed = (int(number.replace(",", "")) for number in told.groups())
    assert streamed < whole
    for free, rc in ((streamed, 0), (streamed - 1, 1)):
        monkeypatch.setattr(memory, "free_memory", lambda where, free=free: free)
        assert cli.main([*given, "sparsegpt", "--stream"]) == rc
    assert "allowed: a smaller model, fewer --blocks, or less" in capsys.readouterr().err
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    assert cli.main([*given, "fisher"]) == 1
    assert "16 for each, more than the 1,000 that are free" in capsys.readouterr().err


def test_files_larger_than_the_memory_are_streamed_or_refused(tmp_path: Path, capsys) -> None:
    """A tensor that no model has, of a hole as large as the memory, at the end of the file."""
    model, texts = save_causal(tmp_path / "llama", "llama"), write_sentences(tmp_path / "texts")
    file = model / causal.WEIGHTS
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header, numbers = json.loads(file.read_bytes()[8:][:size]), file.read_bytes()[8 + size :]
    count = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    ends = [len(numbers), len(numbers) + 4 * count]
    header["hole"] = {"dtype": "F32", "shape": [count], "data_offsets": ends}
    written = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(written).to_bytes(8, "little") + written + numbers)
        opened.truncate(8 + len(written) + ends[1])
    given = ["oneshot", str(model), texts, "--length", "16", "--sparsities", "0.5", "--methods"]
    assert cli.main([*given, "sparsegpt", "--stream"]) == 0
    for method in ("sparsegpt", "fisher"):
        assert cli.main([*given, method]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(r"weights take [\d,]+ bytes, (4|16) for each, more than the", line)


# Runs each case in a fork, which begins with the memory that a small model has left.
MEASURE = """
import os, resource, sys
from pathlib import Path
import torch
from instant_soup.data.batches import Blocks
from instant_soup.library.block_by_block import Model, run_blocks, working_memory
from instant_soup.models import causal

def run(folder, method, streamed):
    draws = torch.Generator().manual_seed(0)
    known, test = (Blocks(torch.randint(0, 300, (8, 256), generator=draws)) for _ in range(2))
    network = causal.as_linear(causal.skeleton(folder))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    run_blocks(Model(folder, streamed), known, test, method, 0.5)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = (1 + (method != "magnitude")) * 8 * 256
    print(working_memory(network, method, tokens, streamed), peak - resident, flush=True)

torch.set_num_threads(1)
small, large = map(Path, sys.argv[1:3])
run(small, "sparsegpt", False)
for case in sys.argv[3:]:
    if not (child := os.fork()):
        method, how = case.split()
        run(large, method, how == "streamed")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
CASES = ["magnitude whole", "magnitude streamed", "wanda whole", "sparsegpt streamed"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is Linux's")
def test_what_is_said_to_be_taken_bounds_what_is_taken(tmp_path: Path) -> None:
    """From above, and by no more than a factor of two."""
    small, large = tmp_path / "small", tmp_path / "large"
    save_causal(small, "llama", max_position_embeddings=256)
    save_causal(large, "llama", max_position_embeddings=256, hidden_size=512, vocab_size=2000,
                intermediate_size=1408, num_attention_heads=8, head_dim=64)  # fmt: skip
    clean = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large, *CASES],
        env=clean, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    _, *lines = run.stdout.splitlines()
    for case, line in zip(CASES, lines, strict=True):
        told, taken = map(int, line.split())
        assert taken <= told <= 2 * taken, (case, told, taken)


def test_models_without_one_stack_or_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch
) -> None:
    bare = save_causal(tmp_path / "bare", "llama", num_hidden_layers=0)
    with pytest.raises(UserError, match="has nothing prunable"):
        Model(bare)
    with pytest.raises(UserError, match=r"model: .* has no \.safetensors weights"):
        Model(tmp_path)
    model = save_causal(tmp_path / "llama", "llama")
    monkeypatch.setattr(memory, "free_memory", lambda where: 1000)
    with pytest.raises(UserError, match=r"weights take [0-9,]+ bytes, 4 for each"):
        Model(model)
    assert Model(model, streamed=True).prunable
