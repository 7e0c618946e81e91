"""Exported language models: named as on the hub, read by transformers alone, whole or in shards."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import EXPORTED, ROOT, make_project, run_row, run_script, save_causal
from instant_soup import cli
from instant_soup.files import read_json, write_json
from instant_soup.models import causal
from instant_soup.sparsity import compact, masks
from instant_soup.tickets import evaluate, export
from instant_soup.training.state import load_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "on_the_cpu")]
WORDS = "the film is good the plot is bad the cast is fine"
# A weight of the first block as the hub's own checkpoints call it, and its shape there.
NAMES = {
    "gpt2": ("h.0.attn.c_attn.weight", (32, 96)),  # inputs × outputs
    "opt": ("model.decoder.layers.0.fc1.weight", (64, 32)),
    "mixtral": ("model.layers.0.block_sparse_moe.experts.3.w1.weight", (64, 32)),
    "qwen2_moe": ("model.layers.0.mlp.experts.3.gate_proj.weight", (16, 32)),
}
USUAL = ("model.layers.0.mlp.gate_proj.weight", (64, 32))


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """An architecture, the project with a one-shot row of it, and what was exported of that."""
    folder = tmp_path_factory.mktemp(request.param)
    model, texts, project = (folder / name for name in ("checkpoint", "texts", "project"))
    save_causal(model, request.param)
    write_json(model / "generation_config.json", {"eos_token_id": 7, "max_new_tokens": 5})
    texts.mkdir()
    for name in ("train", "test"):
        (texts / f"{name}.txt").write_text("\n\n".join(f"{WORDS} {i}" for i in range(40)))
    project.mkdir()
    make_project(
        project, f"causal:local:{model}", texts, sparsity=0.5, methods=["one_shot"],
        data={"max_length": 16, "validation_rows": 10},
        training={"epochs": 0.2, "batch_size": 8, "precision": "fp32", "learning_rate": 1e-3},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        run_row("one_shot")
        run_script("evaluate", "--method", "one_shot")
        export.export("one_shot", folder / "exported")
    return request.param, project, folder / "exported"


def test_names_and_layout_are_the_hubs(exported) -> None:
    kind, project, folder = exported
    tensors, own = load_file(folder / "model.safetensors"), load_file(folder / "mask.safetensors")
    assert own.keys() <= tensors.keys()
    theirs = load_file(project.parent / "checkpoint/model.safetensors")
    assert {n: w.shape for n, w in tensors.items()} == {n: w.shape for n, w in theirs.items()}
    # What vLLM and SGLang read: every .safetensors that the index names.
    index = read_json(folder / "model.safetensors.index.json")["weight_map"]
    assert index == dict.fromkeys(tensors, "model.safetensors")
    name, shape = NAMES.get(kind, USUAL)
    assert [w.shape for n, w in tensors.items() if n.endswith(name)] == [shape]
    told = masks.describe(folder / "mask.safetensors")["inputs_at"]
    assert told == (dict.fromkeys(own, 0) if kind == "gpt2" else {})


def test_transformers_reads_the_same_network(exported) -> None:
    kind, project, folder = exported
    network, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert tied == (kind in ("gpt2", "opt", "llama"))
    weights = load_state(project / "models/retrained/one_shot/state", moments=False).weights
    expected = causal.classifier(project / "models/base", weights).eval()
    tokens = torch.arange(32).view(2, 16)
    with torch.no_grad():
        logits = [one(input_ids=tokens).logits for one in (expected, network.eval())]
    assert torch.allclose(*logits, atol=1e-6)
    mask = masks.load(project / "models/retrained/one_shot/mask.safetensors")
    own = causal.as_linear(network).state_dict()
    assert all((own[name][~kept] == 0).all() for name, kept in mask.items())
    assert masks.count(masks.load(folder / "mask.safetensors")) == masks.count(mask)


def test_the_snippet_of_the_docs_runs_as_it_stands(exported, tmp_path, monkeypatch, capsys) -> None:
    _, _, folder = exported
    (tmp_path / "models/exported").mkdir(parents=True)
    (tmp_path / "models/exported/isp").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    blocks = (ROOT / "docs/export.md").read_text().split("```python\n")[1:]
    (snippet,) = [block for block in blocks if "AutoModelForCausalLM" in block]
    exec(snippet.split("```")[0], {})
    assert capsys.readouterr().out.strip()


def test_what_lies_beside_the_weights_comes_along(exported) -> None:
    _, project, folder = exported
    assert AutoTokenizer.from_pretrained(folder)("the film")["input_ids"]
    assert read_json(folder / "generation_config.json")["max_new_tokens"] == 5
    config = json.loads((folder / "config.json").read_text())
    assert config["use_cache"] and "LM" in config["architectures"][0]
    again = compact.load(folder / "compact.safetensors")
    assert all(torch.equal(w, again[n]) for n, w in load_file(folder / "model.safetensors").items())
    perplexity = read_json(project / "reports/results/one_shot.json")["test"]["perplexity"]
    assert f"| perplexity | {perplexity:.4f} |" in (folder / "README.md").read_text()
    texts = "".join(f.read_text() for f in folder.iterdir() if f.suffix in (".json", ".md"))
    assert str(project.parent) not in texts  # no machine's folders


def test_the_folder_is_evaluated_inspected_and_pruned_again(exported, capsys) -> None:
    _, project, folder = exported
    texts = project.parent / "texts"
    run = ["evaluate", str(folder), f"local:{texts}", "--precision", "fp32", "--json"]
    assert cli.main(run) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["perplexity"]
    expected = read_json(project / "reports/results/one_shot.json")["test"]["perplexity"]
    assert found == pytest.approx(expected, rel=1e-6)
    own = read_json(folder / "ticket.json")
    write_json(folder / "ticket.json", own | {"columns": ["body"]})  # of a table
    assert evaluate.evaluate(folder, f"local:{texts}", precision="fp32")["rows"]
    write_json(folder / "ticket.json", own)
    assert cli.main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sparsity"] == 0.5
    run = ["oneshot", str(folder), f"local:{texts}", "--methods", "magnitude", "--sparsities", "0"]
    assert cli.main([*run, "--length", "16", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["perplexity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("the film", [], "ticket.json: a block has 16 tokens, and the test text only "),
        (WORDS * 9, ["--label", "stars"], "label: stars: plain text has no labels"),
        (WORDS * 9, ["--columns", "a", "b"], "columns: a b: too many; allowed: one, of texts"),
    ],
)
def test_what_a_language_model_is_not_evaluated_on_is_one_line(
    exported, tmp_path: Path, capsys, content: str, more: list[str], message: str
) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(content)
    assert cli.main(["evaluate", str(exported[2]), f"local:{tmp_path}", *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_large_weights_are_written_in_shards(exported, tmp_path: Path, monkeypatch) -> None:
    _, project, folder = exported
    monkeypatch.chdir(project)
    monkeypatch.setattr(causal, "SHARD", 20_000)
    export.export("one_shot", tmp_path / "shards")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    index = read_json(tmp_path / "shards/model.safetensors.index.json")["weight_map"]
    assert len(shards) > 1 and {file.name for file in shards} == set(index.values())
    whole = load_file(folder / "model.safetensors")
    assert index.keys() == whole.keys()
    network, again = (
        AutoModelForCausalLM.from_pretrained(one).state_dict()
        for one in (folder, tmp_path / "shards")
    )
    assert all(torch.equal(w, again[name]) for name, w in network.items())
    texts = f"local:{project.parent / 'texts'}"
    assert cli.main(["evaluate", str(tmp_path / "shards"), texts]) == 0
