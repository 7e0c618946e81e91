"""The BERT family: what is prunable, what is refused as pre-trained, and what a step costs."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from helpers import ROOT, new_classifier
from instant_soup.errors import UserError
from instant_soup.models import base as models
from instant_soup.models import bert, forward, hugging_face, known, matrices
from instant_soup.models.head import Head

SOURCES = str(ROOT / "src")
SMALL = {"vocab_size": 40, "max_position_embeddings": 40}


def bert_config(**changes: Any) -> Any:
    """A BERT of two layers, width 32."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertConfig(**{**SMALL, **sizes, "intermediate_size": 64, **changes})


def roberta_config() -> Any:
    """A RoBERTa of two layers, width 32."""
    from transformers import RobertaConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return RobertaConfig(**SMALL, **sizes, intermediate_size=64, pad_token_id=1, type_vocab_size=1)


def distilbert_config() -> Any:
    """A DistilBERT of two layers, width 32."""
    from transformers import DistilBertConfig

    return DistilBertConfig(**SMALL, dim=32, n_layers=2, n_heads=4, hidden_dim=64)


FAMILIES = {"bert": bert_config, "roberta": roberta_config, "distilbert": distilbert_config}
BLOCK = {
    "bert": (
        "bert.encoder.layer",
        [f"attention.self.{n}" for n in ("query", "key", "value")]
        + ["attention.output.dense", "intermediate.dense", "output.dense"],
    ),
    "distilbert": (
        "distilbert.transformer.layer",
        [f"attention.{n}_lin" for n in ("q", "k", "v", "out")] + ["ffn.lin1", "ffn.lin2"],
    ),
}
BLOCK["roberta"] = ("roberta.encoder.layer", BLOCK["bert"][1])


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[str, Path]:
    """A model family, and the folder of a tiny checkpoint of it without any head."""
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    AutoModel.from_config(FAMILIES[request.param]()).save_pretrained(folder)
    return request.param, folder


def local(folder: Path) -> known.BaseModel:
    """A model in a folder."""
    return known.BaseModel("local", "bert", "local", path=str(folder))


@pytest.fixture
def own_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be broken."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "own-bert"))


# What is prunable


def test_the_six_matrices_of_every_layer_are_prunable_and_nothing_else(family) -> None:
    name, folder = family
    prefix, names = BLOCK[name]
    model = new_classifier(folder, 2, 0)
    found = matrices.prunable(model)
    assert sorted(found) == sorted(f"{prefix}.{i}.{m}.weight" for i in (0, 1) for m in names)
    assert sum(w.numel() for w in found.values()) == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    parameters = dict(model.named_parameters())
    assert all(found[n] is parameters[n] for n in found)


def test_a_model_without_blocks_has_nothing_prunable() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    assert matrices.prunable(model) == {}


# Loading what was pre-trained


def test_every_weight_of_the_checkpoint_arrives_and_only_the_head_is_new(family) -> None:
    _, folder = family
    model, new = bert.load_pretrained(folder)
    stored, loaded = load_file(folder / "model.safetensors"), model.state_dict()
    prefix = f"{model.base_model_prefix}."
    head = {name for name in loaded if not name.startswith(prefix)}
    assert {n for n in new if "pooler" not in n} == head
    for name, weight in stored.items():
        full_name = name if name in loaded else prefix + name
        if full_name in loaded:
            assert torch.equal(loaded[full_name], weight), name
        else:
            assert "pooler" in name  # RoBERTa's classifier has its own


def test_a_checkpoint_without_a_pooler_is_welcome(own_bert: Path) -> None:
    weights = load_file(own_bert / "model.safetensors")
    left = {n: w for n, w in weights.items() if "pooler" not in n}
    assert len(left) == len(weights) - 2
    save_file(left, own_bert / "model.safetensors", metadata={"format": "pt"})
    _, new = bert.load_pretrained(own_bert)
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= new


def test_a_fine_tuned_classifier_is_welcome_as_a_base(tiny_bert: Path, tmp_path: Path) -> None:
    fine_tuned = new_classifier(tiny_bert, 3, 0)
    fine_tuned.save_pretrained(tmp_path)
    model, new = bert.load_pretrained(tmp_path)
    assert new == set()
    assert torch.equal(model.state_dict()["classifier.weight"], fine_tuned.classifier.weight)


@pytest.mark.parametrize(
    "part",
    [
        "encoder.layer.1.attention.self.query.weight",
        "encoder.layer.0.output.LayerNorm.bias",
        "embeddings.word_embeddings.weight",
    ],
)
def test_a_checkpoint_that_lacks_an_encoder_weight_is_refused(own_bert: Path, part: str) -> None:
    weights = load_file(own_bert / "model.safetensors")
    (lost,) = [n for n in weights if n.endswith(part)]
    del weights[lost]
    save_file(weights, own_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights of its encoder") as caught:
        bert.load_pretrained(own_bert)
    assert part in str(caught.value)


def test_a_checkpoint_that_does_not_fit_its_configuration_is_refused(own_bert: Path) -> None:
    config = json.loads((own_bert / "config.json").read_text())
    (own_bert / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(UserError, match="own-bert"):
        bert.load_pretrained(own_bert)


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "no folder", "unknown type"])
def test_a_broken_model_folder_is_refused_in_one_line(own_bert: Path, damage: str) -> None:
    if damage == "no weights":
        (own_bert / "model.safetensors").unlink()
    elif damage == "cut weights":
        content = (own_bert / "model.safetensors").read_bytes()
        (own_bert / "model.safetensors").write_bytes(content[:-100])
    elif damage == "no folder":
        shutil.rmtree(own_bert)
    else:
        (own_bert / "config.json").write_text('{"model_type": "no-such-thing"}')
    with pytest.raises(UserError, match="own-bert cannot be loaded") as caught:
        bert.load_pretrained(own_bert)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(UserError, match="no_such_package_of_models is not installed"):
        known.packaged_folder("no_such_package_of_models", "model")


def test_the_packaged_model_lies_in_its_wheel() -> None:
    from instant_soup.models.known import MODELS

    model = MODELS["minilm"]
    assert (known.packaged_folder(model.package, model.folder) / "config.json").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_of_another_type_is_trained_in_fp32(own_bert: Path, tmp_path, dtype) -> None:
    weights = load_file(own_bert / "model.safetensors")
    narrow = {name: w.to(dtype) for name, w in weights.items()}
    save_file(narrow, own_bert / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((own_bert / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (own_bert / "config.json").write_text(json.dumps(config))
    bert.prepare_base(local(own_bert), tmp_path)
    start = bert.start_weights(tmp_path, Head(outputs=2, seed=0))
    model = bert.classifier(tmp_path, start, outputs=2)
    for found in (load_file(tmp_path / "model.safetensors"), start, model.state_dict()):
        assert {w.dtype for w in found.values()} == {torch.float32}
    query = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(start[f"bert.{query}"], narrow[query].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(own_bert: Path, tmp_path, value: float) -> None:
    weights = load_file(own_bert / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][3] = value
    save_file(weights, own_bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layer\.1\.output\.dense\.bias holds NaN or infinity"):
        bert.prepare_base(local(own_bert), tmp_path)


def test_code_that_comes_with_a_checkpoint_never_runs(own_bert: Path, monkeypatch) -> None:
    config = json.loads((own_bert / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    config |= {"model_type": "own", "auto_map": auto}
    (own_bert / "config.json").write_text(json.dumps(config))
    (own_bert / "own.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(own_bert)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="own-bert cannot be loaded: it asks to run code of its o"):
        bert.load_pretrained(own_bert)
    code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (own_bert / "tokenizer_config.json").write_text(json.dumps(code))
    with contextlib.suppress(UserError):  # or it comes as a class that is known
        hugging_face.load_tokenizer(own_bert)
    assert not (own_bert / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[]", "holds no settings"),
        ("tokenizer.json", "{", "cannot be read as a tokenizer"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "cannot be read as a tokenizer"),
        ("tokenizer.json", "", "cannot be read as a tokenizer"),
    ],
)
def test_damaged_files_of_a_folder_are_refused_before_any_work(
    own_bert: Path, file: str, content: str, reason: str
) -> None:
    (own_bert / file).write_text(content)
    with pytest.raises(UserError, match=rf"{file}.*{reason}") as caught:
        known.resolve_model(f"local:{own_bert}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"num_hidden_layers": None}])
def test_settings_that_make_no_model_are_refused(own_bert: Path, change: dict) -> None:
    config = json.loads((own_bert / "config.json").read_text())
    (own_bert / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match="own-bert cannot be loaded: ") as caught:
        bert.load_pretrained(own_bert)
    assert "\n" not in str(caught.value)


# The hub


@pytest.mark.parametrize(
    "path", ["./here", "/tmp/here", "~/here", "a/b/c", "..", "models/base/", ""]
)
def test_a_path_is_no_name_of_the_hub(path: str) -> None:
    with pytest.raises(UserError, match="allowed: "):
        known.resolve_model(f"hub:{path}")


SCRIPT = """
import os, sys
from pathlib import Path
from instant_soup.errors import UserError
from instant_soup.models import bert, hugging_face
from instant_soup.models.matrices import prunable

os.chdir(sys.argv[1])
Path("bert-base-uncased").mkdir()  # stands in for nothing
Path("bert-base-uncased/config.json").write_text("{}")
folder = hugging_face.downloaded("bert-base-uncased")
model, new = bert.load_pretrained(folder)
hugging_face.load_tokenizer(folder).save_pretrained(".")
print(sorted(new), len(prunable(model)), float(model.bert.pooler.dense.weight.sum()))
try:
    hugging_face.downloaded("org/not-in-the-cache")
except UserError as error:
    print(error)
"""


def test_a_hub_model_comes_from_the_hubs_cache_or_is_refused(tiny_bert, tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--bert-base-uncased"
    commit = "86b5e0934494bd15c9632b12f734a8a67f723594"
    shutil.copytree(tiny_bert, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "TRANSFORMERS"))}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**environment, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, refused = done.stdout.splitlines()
    pooler = load_file(tiny_bert / "model.safetensors")["pooler.dense.weight"]
    assert found == f"['classifier.bias', 'classifier.weight'] 12 {float(pooler.sum())}"
    assert (tmp_path / "tokenizer.json").exists()
    assert refused.startswith("model: org/not-in-the-cache cannot be loaded from the Hugging Face")
    assert "is there a network?" in refused


# Classifiers around given weights


def test_a_new_classifier_depends_on_the_seed_and_on_nothing_else(tiny_bert: Path) -> None:
    one = new_classifier(tiny_bert, 2, 5).state_dict()
    torch.rand(3)
    again = new_classifier(tiny_bert, 2, 5).state_dict()
    other = new_classifier(tiny_bert, 2, 6).state_dict()
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert one["classifier.weight"].shape == (2, 32)


def test_a_classifier_has_exactly_the_weights_it_is_given(family) -> None:
    _, folder = family
    weights = new_classifier(folder, 3, 1).state_dict()
    model = bert.classifier(folder, weights, outputs=3)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())


def test_foreign_weights_are_refused_and_the_difference_named(tiny_bert: Path) -> None:
    weights = new_classifier(tiny_bert, 2, 1).state_dict()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    wrong = {
        "classifier.bias": {**weights, "classifier.bias": torch.zeros(3)},
        query: {n: w for n, w in weights.items() if n != query},
        "bert.extra": {**weights, "bert.extra": torch.zeros(1)},
    }
    for name, given in wrong.items():
        with pytest.raises(UserError, match="weights of another model") as caught:
            bert.classifier(tiny_bert, given, outputs=2)
        assert name in str(caught.value)
    with pytest.raises(UserError, match="weights of another model"):
        bert.classifier(tiny_bert, weights, outputs=3)


def dropouts(model: torch.nn.Module) -> set[float]:
    """Probabilities of the model's dropout layers."""
    return {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}


def test_dropout_is_the_models_or_the_one_asked_for(family) -> None:
    name, folder = family
    weights = new_classifier(folder, 2, 1).state_dict()
    own = {0.1, 0.2} if name == "distilbert" else {0.1}
    assert dropouts(bert.classifier(folder, weights, outputs=2)) == own
    assert dropouts(bert.classifier(folder, weights, outputs=2, dropout=0.0)) == {0.0}
    assert dropouts(bert.classifier(folder, weights, outputs=2, dropout=0.3)) == {0.3}


def test_dropout_of_zero_makes_training_deterministic(family) -> None:
    _, folder = family
    weights = new_classifier(folder, 2, 1).state_dict()
    ids = torch.arange(5, 17).view(2, 6)
    for dropout, same in ((0.0, True), (0.3, False)):
        model = bert.classifier(folder, weights, outputs=2, dropout=dropout).train()
        one, other = model(input_ids=ids).logits, model(input_ids=ids).logits
        assert torch.equal(one, other) == same


def test_frozen_embeddings_are_all_tables_and_nothing_else(family) -> None:
    _, folder = family
    model = new_classifier(folder, 2, 1)
    bert.freeze_tables(model)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    tables = {n for n, _ in model.named_parameters() if n.endswith("_embeddings.weight")}
    assert frozen == tables and len(tables) >= 2


# Cost


def counted(model: torch.nn.Module, sequences: int, length: int, backward: bool) -> int:
    """FLOPs of a pass, as torch's own counter has them."""
    ids = torch.randint(5, 40, (sequences, length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with FlopCounterMode(display=False) as counter:
        loss = model(**inputs).logits.sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("sequences", "length"), [(1, 8), (5, 8), (3, 24)])
def test_forward_flops_are_those_that_torch_counts(family, sequences: int, length: int) -> None:
    _, folder = family
    model = new_classifier(folder, 3, 0)
    model.set_attn_implementation("eager")  # the counter does not see CPUs' fused attention
    found = matrices.prunable(model)
    weights = sum(w.numel() for w in found.values())
    batch = {"input_ids": torch.full((sequences, length), 5)}
    in_prunable, others = models.forward_flops(model, found, batch)
    assert in_prunable == 2 * weights * sequences * length
    assert in_prunable + others == counted(model, sequences, length, backward=False)


def test_processes_share_their_counts_of_flops(
    family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = family
    model, file = new_classifier(folder, 3, 0), tmp_path / "flops.json"
    found, batch = matrices.prunable(model), {"input_ids": torch.full((4, 12), 5)}

    def count_as_a_new_process() -> tuple[float, float]:
        monkeypatch.setattr(forward, "_counted", {})
        monkeypatch.setattr(forward, "_shared", [])
        forward.share_counts(file)
        return models.forward_flops(model, found, batch)

    counted_here = count_as_a_new_process()
    known = json.loads(file.read_text())
    assert len(known) == 2  # of one row and of two
    with monkeypatch.context() as patch:
        patch.setattr(forward, "logits_of", None)  # nothing is passed through any more
        assert count_as_a_new_process() == counted_here
    for damage in ("{", "[]", json.dumps(dict.fromkeys(known, "many"))):
        file.write_text(damage)
        assert count_as_a_new_process() == counted_here
        assert json.loads(file.read_text()) == known


@pytest.mark.parametrize("frozen", [False, True])
def test_a_training_step_costs_three_forward_passes(family, frozen: bool) -> None:
    _, folder = family
    model = new_classifier(folder, 3, 0)
    model.set_attn_implementation("eager")
    if frozen:  # saves no matrix product: the embeddings' norm still trains
        bert.freeze_tables(model)
    found = matrices.prunable(model)
    forward = sum(models.forward_flops(model, found, {"input_ids": torch.full((4, 16), 5)}))
    assert counted(model, 4, 16, backward=True) == 3 * forward
