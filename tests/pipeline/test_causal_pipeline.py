"""A tiny GPT-2 on plain text through the stages' own scripts, from a folder to an exported one."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import BAD, FILLERS, GOOD, make_project, run_isp, run_row, run_script, save_causal
from instant_soup.errors import UserError
from instant_soup.files import read_json
from instant_soup.models import causal, hugging_face
from instant_soup.sparsity import compact, masks
from instant_soup.tickets import evaluate as tickets
from instant_soup.tickets import export
from instant_soup.training import loop
from instant_soup.training.state import load_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "on_the_cpu")]
ROWS = ("one_shot", "isp_plus", "wanda", "sparsegpt", "n_of_m", "greedy_soup")


def write_texts(folder: Path) -> Path:
    """Sentences in which a word is nearly always followed by the same other one."""
    draws = torch.Generator().manual_seed(0)
    words, folder = [*GOOD, *BAD, *FILLERS], folder / "texts"
    folder.mkdir()
    for name, rows in (("train", 120), ("test", 30)):
        starts = torch.randint(len(words), (rows,), generator=draws).tolist()
        texts = [" ".join(words[(start + i) % len(words)] for i in range(12)) for start in starts]
        (folder / f"{name}.txt").write_text("\n\n".join(texts))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project folder in which all rows are finished and evaluated."""
    folder = tmp_path_factory.mktemp("language")
    model, texts = save_causal(folder / "gpt2", "gpt2"), write_texts(folder)
    project = folder / "project"
    project.mkdir()
    make_project(
        project, f"causal:local:{model}", texts, sparsity=0.5, methods=[*ROWS],
        data={"max_length": 16, "validation_rows": 20},
        training={"epochs": 2, "batch_size": 8, "precision": "fp32", "learning_rate": 3e-3},
        isp={"compression_rate": 0.3, "calibration": 0.1, "look_ahead": 2, "denoisers": 1},
        model_soup={"networks": 2},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        run_script("dense_finetune")
        run_isp()
        for row in ROWS:
            run_row(row)
        for row in ("dense", "isp", *ROWS):
            run_script("evaluate", "--method", row)
    return project


def result(project: Path, row: str) -> dict:
    return read_json(project / f"reports/results/{row}.json")


def test_rows_are_as_sparse_as_asked_and_know_more_than_the_start(project: Path) -> None:
    start = read_json(project / "models/retrained/dense/run.json")
    assert start["cost"]["steps"] > 0
    for row in ("dense", "isp", *ROWS):
        found = result(project, row)
        dense = row in ("dense", "greedy_soup")
        assert found["pruned_weights"] == (0 if dense else found["prunable_weights"] // 2)
        assert found["prunable_weights"] == 2 * 12 * 32 * 32
        # Nothing known is a perplexity of 300, the vocabulary; words alone, one of some 20.
        assert 1 < found["test"]["perplexity"] < 100, row


def test_each_group_of_four_inputs_keeps_two(project: Path) -> None:
    """Of GPT-2, whose files have inputs as rows."""
    mask = masks.load(project / "models/retrained/n_of_m/mask.safetensors")
    for kept in mask.values():
        assert (kept.reshape(-1, 4).sum(1) == 2).all()


def test_wanda_prunes_each_output_alike(project: Path) -> None:
    mask = masks.load(project / "models/retrained/wanda/mask.safetensors")
    for name, kept in mask.items():
        assert kept.shape[0] in ((96, 32, 128) if "c_attn" in name else (32, 128))
        assert (kept.sum(1) == kept.shape[1] // 2).all()


def test_validation_is_of_the_same_kind_as_the_test(project: Path) -> None:
    for row in ("dense", "isp"):
        validation = read_json(project / f"models/retrained/{row}/run.json")["validation"]
        test = result(project, row)["test"]["perplexity"]
        assert abs(math.log(validation / test)) < 0.5


def test_an_exported_folder_is_what_transformers_reads(
    project: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(project)
    for dtype in ("fp32", "bf16"):
        ticket = export.export("isp", tmp_path / dtype, dtype)
        assert ticket.items() >= {"family": "causal", "kind": "language", "max_length": 16}.items()
    folder, auto = tmp_path / "fp32", hugging_face.transformers_auto()
    network, loading = auto.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    in_file = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in in_file
    assert in_file["transformer.h.0.mlp.c_fc.weight"].shape == (32, 128)
    # The pipeline's own network, in its own layout, says the same.
    weights = load_state(project / "models/retrained/isp/state", moments=False).weights
    own = causal.classifier(project / "models/base", weights).eval()
    batch = {"input_ids": torch.arange(16)[None]}
    with torch.no_grad():
        expected, found = (loop.logits_of(one.eval(), batch) for one in (own, network))
    assert torch.allclose(expected, found, atol=1e-5)
    mask = masks.load(folder / "mask.safetensors")
    assert all((in_file[name][~kept] == 0).all() for name, kept in mask.items())
    again = compact.load(folder / "compact.safetensors")
    assert all(torch.equal(w, in_file[name]) for name, w in again.items())
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    card = (folder / "README.md").read_text()
    perplexity = result(project, "isp")["test"]["perplexity"]
    assert f"| perplexity | {perplexity:.4f} |" in card and "AutoModelForCausalLM" in card
    assert "library_name: transformers\npipeline_tag: text-generation" in card


def test_an_exported_folder_is_evaluated_as_the_pipeline_did(
    project: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(project)
    export.export("one_shot", tmp_path / "ticket")
    found = tickets.evaluate(
        tmp_path / "ticket", f"local:{project.parent / 'texts'}", precision="fp32"
    )
    expected = result(project, "one_shot")["test"]["perplexity"]
    assert found["metrics"] == {"perplexity": pytest.approx(expected, rel=1e-6)}
    with pytest.raises(UserError, match=r"sst2 holds texts, but model: .* reads plain text"):
        tickets.evaluate(tmp_path / "ticket", "sst2")
