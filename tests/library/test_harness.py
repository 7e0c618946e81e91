"""lm-evaluation-harness: the model is handed over in memory, and its answers are our own."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import save_causal
from instant_soup.errors import UserError
from instant_soup.library import harness
from instant_soup.models import causal
from instant_soup.models.hugging_face import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")
WORDS = ("fine", "dull", "great", "weak", "slow")


def test_the_harness_gets_the_model_in_memory(tmp_path: Path, monkeypatch) -> None:
    """A stand-in for the harness, for machines that do not have it."""
    folder = save_causal(tmp_path / "llama", "llama")
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'instant-soup\[harness\]'"):
        harness.choices(folder, ["piqa"])
    got: dict[str, Any] = {}

    def simple_evaluate(model: Any, tasks: list[str], limit: int | None) -> dict[str, Any]:
        return {"results": {task: {"alias": task, "acc,none": 0.5} for task in tasks}}

    def held(**given: Any) -> str:
        got.update(given)
        return "held"

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setitem(sys.modules, "lm_eval.models", SimpleNamespace())
    own = SimpleNamespace(HFLM=held)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", own)
    assert harness.choices(folder, ["piqa"]) == {"piqa": {"acc,none": 0.5}}
    assert got["pretrained"].config.model_type == "llama" and got["batch_size"] == 8


def test_the_real_harness_counts_as_plain_loops_do(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="pip install lm-eval")
    folder = save_causal(tmp_path / "llama", "llama")
    questions = [
        {"question": f"the film is {WORDS[i % 5]} and", "choices": WORDS, "label": i % 3}
        for i in range(30)
    ]
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, questions)))
    task: Any = {  # one of the hub's would be called by its name
        **{"task": "films", "dataset_path": "json", "test_split": "test"},
        **{"dataset_kwargs": {"data_files": {"test": str(tmp_path / "q.json")}}},
        **{"output_type": "multiple_choice", "doc_to_text": "{{question}}"},
        **{"doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}"},
        **{"metric_list": [{"metric": "acc"}]},
    }
    found = harness.choices(folder, [task])["films"]["acc,none"]

    network, tokenizer = causal.load_pretrained(folder).eval(), load_tokenizer(folder)

    def likelihood(question: str, choice: str) -> float:
        before = tokenizer(question, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor(
            [tokenizer(f"{question} {choice}", add_special_tokens=False)["input_ids"]]
        )
        with torch.no_grad():
            logs = network(input_ids=tokens).logits.log_softmax(-1)
        own = range(len(before), tokens.shape[1])
        return sum(float(logs[0, i - 1, tokens[0, i]]) for i in own)

    answers = [
        max(range(5), key=lambda c, q=q: likelihood(q["question"], q["choices"][c]))
        for q in questions
    ]
    right = [answer == q["label"] for answer, q in zip(answers, questions, strict=True)]
    assert 0 < sum(right) < len(right)  # or it would tell nothing
    assert found == pytest.approx(sum(right) / len(right))
