"""The small Llama of our own: its texts, its tokenizer, and a pre-training of a few steps."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import FakeRun
from instant_soup.config.sections import Pretraining
from instant_soup.data import reviews
from instant_soup.data.batches import Blocks
from instant_soup.models import causal, hugging_face
from instant_soup.pretraining import llama_snippets
from instant_soup.training import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")
TEXTS = [f"the {i} film was {'fine' if i % 3 else 'dull'} and so was the cast" for i in range(120)]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 300}
FEW = Pretraining(
    objective="", steps=6, batch_size=4, learning_rate=1e-2, weight_decay=0.1, warmup=0.1, seed=0,
    precision="fp32",
)  # fmt: skip


def pretrain(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Pretraining = FEW) -> dict:
    """A pre-training of a smaller model on few texts, in a folder with a store of its own."""
    config = json.loads(llama_snippets.MODEL_CONFIG.read_text())
    own = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16}
    folder.mkdir()
    (folder / "small.json").write_text(json.dumps(config | SMALL | own))
    monkeypatch.setattr(llama_snippets, "MODEL_CONFIG", folder / "small.json")
    monkeypatch.setattr(llama_snippets, "texts", lambda: TEXTS)
    store = checkpoints.Store(folder / "store")
    (folder / "model").mkdir()
    run: Any = FakeRun()
    return llama_snippets.pretrain(folder / "model", settings, run, store)


def test_texts_of_a_document_stay_together(monkeypatch) -> None:
    rows = {
        "nytEditorialSnippets": [
            ["1_1", "0", "One."],
            ["1_2", "0", "Two. "],
            ["2_1", "0", "Three."],
        ],
        "amazonReviewSnippets": [["2_1", "0", "Four."]],
        "tweets": [["1", "0", "Five."], ["2", "0", "Six."]],
    }
    monkeypatch.setattr(llama_snippets, "read_rows", rows.__getitem__)
    assert llama_snippets.texts() == ["One. Two.", "Three.", "Four.", "Five.", "Six."]
    assert reviews.MOVIES not in reviews.OTHERS  # which are fine-tuned on, and tested


def test_held_out_texts_are_in_no_training(monkeypatch) -> None:
    train, held_out = llama_snippets.split(TEXTS)
    assert len(held_out) == 6 and not {*train} & {*held_out}
    assert sorted([*train, *held_out]) == sorted(TEXTS)


def test_pre_training_gives_the_same_bits_and_what_transformers_reads(
    tmp_path: Path, monkeypatch
) -> None:
    found = [pretrain(tmp_path / name, monkeypatch) for name in ("one", "other")]
    assert found[0] == found[1]
    files = [
        {f.name: f.read_bytes() for f in (tmp_path / name / "model").iterdir()}
        for name in ("one", "other")
    ]
    assert files[0] == files[1]
    assert {"tokenizer.json", "config.json", "model.safetensors", "curve.csv"} <= files[0].keys()
    # So few steps leave it near what knows nothing; but it has learnt.
    assert found[0]["perplexity"] < 300
    network = causal.load_pretrained(tmp_path / "one/model")
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight
    tokenizer = hugging_face.load_tokenizer(tmp_path / "one/model")
    assert tokenizer.decode(tokenizer(TEXTS[3])["input_ids"]) == TEXTS[3]


def test_the_unigram_models_perplexity_is_that_of_the_formula() -> None:
    train = Blocks(torch.tensor([[0, 0, 0, 1]], dtype=torch.int32))
    held_out = Blocks(torch.tensor([[1, 0, 1, 2]], dtype=torch.int32))
    # Counts, each one more: 4, 2, 1 of 7; the first token of the block is not told.
    expected = math.exp(-sum(map(math.log, (4 / 7, 2 / 7, 1 / 7))) / 3)
    assert llama_snippets.unigram_perplexity(train, held_out, 3) == pytest.approx(expected)
