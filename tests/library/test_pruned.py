"""Pruned models saved: stock loaders and the command line read them."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import instant_soup
from helpers import TINY_CLIP, make_table, perceptron, save_causal, save_clip
from instant_soup.errors import UserError
from instant_soup.files import read_json, write_json
from instant_soup.models import clip, hugging_face
from instant_soup.sparsity import compact, masks
from instant_soup.tickets import inspect

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


def pruned(model: nn.Module, sparsity: float = 0.6) -> instant_soup.Pruned:
    """A model with a magnitude mask, as `prune` returns it."""
    from instant_soup.library.model import choose
    from instant_soup.sparsity import scores

    mask = scores.magnitude({n: p.detach() for n, p in choose(model).items()}, sparsity)
    masks.apply(mask, dict(model.named_parameters()))
    cost = {"steps": 3, "search_steps": 0}
    return instant_soup.Pruned(model.eval(), mask, cost, "one_shot", masks.sparsity(mask), 7)


@pytest.fixture(scope="module")
def classifier(tiny_bert: Path) -> instant_soup.Pruned:
    """A classifier trained until it knows good words from bad ones, and pruned on the way."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    hugging_face.transformers_auto()
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    table = make_table(200)
    texts, labels = table["sentence"].tolist(), torch.tensor(table["label"].tolist())
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    batches = [
        {**{k: v[i : i + 20] for k, v in encoded.items()}, "labels": labels[i : i + 20]}
        for i in range(0, 200, 20)
    ]
    return instant_soup.prune(
        model, batches, lambda m, b: m(**b).loss, steps=80, learning_rate=5e-3,
        method="isp_plus", sparsity=0.6, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(classifier: Any, tiny_bert: Path, tmp_path_factory: Any) -> Path:
    place = tmp_path_factory.mktemp("saved") / "ticket"
    classifier.save(place, tokenizer=tiny_bert, classes=["bad", "good"], max_length=16)
    return place


def test_transformers_loads_it_with_the_same_outputs(classifier: Any, folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a fine film", "a dull plot"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, classifier.model(**batch).logits)
    assert model.config.id2label == {0: "bad", 1: "good"}
    for name, kept in classifier.mask.items():
        assert not model.get_parameter(name).detach()[~kept].any()


def test_its_files_are_those_of_an_exported_ticket(classifier: Any, folder: Path) -> None:
    names = {file.name for file in folder.iterdir()}
    assert names >= {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("mask.safetensors", "compact.safetensors", "ticket.json"),
    }
    stored = load_file(folder / "model.safetensors")
    for name, weight in compact.load(folder / "compact.safetensors").items():
        assert torch.equal(weight, stored[name])
    mask = masks.load(folder / "mask.safetensors")
    assert all(torch.equal(kept, mask[name]) for name, kept in classifier.mask.items())
    assert masks.describe(folder / "mask.safetensors")["method"] == "isp_plus"
    ticket = read_json(folder / "ticket.json")
    assert ticket["format"] == "instant-soup-ticket-1" and ticket["family"] == "bert"
    assert (ticket["method"], ticket["seed"], ticket["dtype"]) == ("isp_plus", 0, "fp32")
    assert ticket["classes"] == ["bad", "good"] and ticket["max_length"] == 16
    assert ticket["sparsity"] == classifier.sparsity and ticket["cost"]["steps"] == 80
    assert len({file.stat().st_mode for file in folder.iterdir() if file.is_file()}) == 1


def test_the_command_line_inspects_and_applies_it(
    classifier: Any, folder: Path, tiny_bert: Path, tmp_path: Path, capsys: Any
) -> None:
    from instant_soup.cli import main

    assert main(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sparsity"] == pytest.approx(classifier.sparsity) and len(found["matrices"]) == 12
    for path in (folder, folder / "compact.safetensors", folder / "mask.safetensors"):
        mask = inspect.read(path).mask
        assert masks.count(mask) == masks.count(classifier.mask)
    assert main(["apply", str(folder), str(tiny_bert), "--to", str(tmp_path / "other")]) == 0
    applied = load_file(tmp_path / "other/model.safetensors")
    for name, kept in classifier.mask.items():
        assert not applied[name.removeprefix("bert.")][~kept].any()


def test_the_command_line_evaluates_it(folder: Path, tmp_path: Path, capsys: Any) -> None:
    from instant_soup.cli import main

    for split, rows, seed in (("train", 40, 2), ("test", 60, 1)):
        table = make_table(rows, seed)
        table["label"] = table["label"].map({0: "bad", 1: "good"})
        table.to_csv(tmp_path / f"{split}.csv", index=False)
    assert main(["evaluate", str(folder), f"local:{tmp_path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 60 and found["metrics"]["accuracy"] > 0.8


def test_a_language_model_is_saved_for_loaders_and_evaluated(tmp_path: Path, capsys: Any) -> None:
    from instant_soup.cli import main
    from instant_soup.models import causal

    model = causal.load_pretrained(save_causal(tmp_path / "llama", "llama"))
    pruned(model).save(tmp_path / "new", tokenizer=tmp_path / "llama", max_length=16)
    pruned(model).save(tmp_path / "long", tokenizer=tmp_path / "llama", max_length=10**6)
    most = model.config.max_position_embeddings  # whatever is asked for
    assert read_json(tmp_path / "long/ticket.json")["max_length"] == most
    stored = load_file(tmp_path / "new/model.safetensors")
    index = read_json(tmp_path / "new/model.safetensors.index.json")["weight_map"]
    assert index == dict.fromkeys(stored, "model.safetensors")  # not mask and compact file
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("\n\n".join(f"the film is fine {i}" for i in range(100)))
    assert main(["evaluate", str(tmp_path / "new"), f"local:{texts}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["perplexity"] > 1


def test_columns_that_were_named_are_found_again(
    classifier: Any, tiny_bert: Path, tmp_path: Path, capsys: Any
) -> None:
    from instant_soup.cli import main

    own = {"columns": ["review"], "label": "verdict", "classes": ["bad", "good"]}
    classifier.save(tmp_path / "ticket", tokenizer=tiny_bert, **own)
    table = make_table(60).rename(columns={"sentence": "review", "label": "verdict"})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        table.to_csv(tmp_path / f"data/{split}.csv", index=False)
    assert main(["evaluate", str(tmp_path / "ticket"), f"local:{tmp_path}/data"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_what_evaluate_cannot_build_is_one_line(tmp_path: Path, capsys: Any) -> None:
    from instant_soup.cli import main

    pruned(perceptron()).save(tmp_path / "own")
    assert main(["evaluate", str(tmp_path / "own"), "reviews-sentiment"]) == 1
    error = capsys.readouterr().err
    assert "a Sequential, which cannot be built" in error and error.count("\n") == 1


def test_any_module_is_saved_with_its_tied_weights(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6))
    model[3].weight = model[2].weight
    made = pruned(model)
    made.save(tmp_path / "own")
    other = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 6))
    other.load_state_dict(load_file(tmp_path / "own/model.safetensors"))
    x = torch.randn(4, 6)
    assert torch.equal(model(x), other(x))
    assert read_json(tmp_path / "own/ticket.json")["family"] == "own"
    assert masks.count(inspect.read(tmp_path / "own").mask) == masks.count(made.mask)


def test_bf16_stays_bf16(tmp_path: Path) -> None:
    pruned(perceptron().to(torch.bfloat16)).save(tmp_path / "own")
    assert read_json(tmp_path / "own/ticket.json")["dtype"] == "bf16"
    stored = compact.load(tmp_path / "own/compact.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_compact_file_has_every_tensor_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also where a model's statistics are wider than its weights."""
    model = nn.Sequential(perceptron(), nn.BatchNorm1d(2)).to(dtype)
    model[1].running_var = torch.rand(2, dtype=torch.float32)
    pruned(model).save(tmp_path / "ticket")
    back = compact.load(tmp_path / "ticket/compact.safetensors")
    for name, tensor in model.state_dict().items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_a_vision_transformer_is_saved_without_a_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
    config = ViTConfig(num_attention_heads=2, intermediate_size=64, num_labels=3, **sizes)
    made = pruned(ViTForImageClassification(config))
    made.save(tmp_path / "vit")
    x = torch.randn(2, 3, 16, 16)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "vit").eval()
    with torch.no_grad():
        assert torch.equal(model(x).logits, made.model(x).logits)
    assert masks.count(inspect.read(tmp_path / "vit").mask) == masks.count(made.mask)


def test_open_clip_loads_it_from_its_folder(tmp_path: Path) -> None:
    base = save_clip(tmp_path / "base", TINY_CLIP)
    package = clip.open_clip()
    model, _, _ = package.create_model_and_transforms(f"local-dir:{base}")
    made = pruned(model)
    with pytest.raises(UserError, match="base: None is no folder with an open_clip_config"):
        made.save(tmp_path / "ticket")
    own = {"classes": ["one", "two"], "templates": ["no {}.", "a {}."]}
    made.save(tmp_path / "ticket", base=base, **own)
    again, _, _ = package.create_model_and_transforms(f"local-dir:{tmp_path / 'ticket'}")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval().encode_image(x), model.encode_image(x))
    assert masks.count(inspect.read(tmp_path / "ticket").mask) == masks.count(made.mask)
    ticket = read_json(tmp_path / "ticket/ticket.json")
    assert (ticket["family"], ticket["seed"]) == ("clip", 7)
    assert {name: ticket[name] for name in own} == own


def test_a_saved_open_clip_model_is_evaluated_with_or_without_names_of_its_own(
    tmp_path: Path, capsys: Any
) -> None:
    """Where it has none, a folder's classes are those of the folder."""
    from instant_soup.cli import main

    base = save_clip(tmp_path / "base", TINY_CLIP)
    model, _, _ = clip.open_clip().create_model_and_transforms(f"local-dir:{base}")
    for split, kind in itertools.product(("train", "test"), ("bright", "dark")):
        (tmp_path / "data" / split / kind).mkdir(parents=True)
        for n in range(4):
            picture = Image.new("RGB", (32, 32), "white" if kind == "bright" else "black")
            picture.save(tmp_path / "data" / split / kind / f"{n}.png")
    own = pruned(model)
    own.save(tmp_path / "plain", base=base)
    own.save(tmp_path / "named", base=base, classes=["bright", "dark"])
    found = []
    for name in ("plain", "named"):
        assert main(["evaluate", str(tmp_path / name), f"local:{tmp_path}/data", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"])
    assert found[0] == found[1] and "accuracy" in found[0]
    whole = (tmp_path / "plain/ticket.json").read_text()
    for key in ("family", "kind", "dataset", "method", "classes", "test_rows", "templates"):
        write_json(tmp_path / "plain/ticket.json", {**json.loads(whole), key: None})
        assert main(["evaluate", str(tmp_path / "plain"), f"local:{tmp_path}/data"]) == 1
        assert f"ticket.json: damaged ({key}: None)" in capsys.readouterr().err
    (tmp_path / "plain/ticket.json").write_text(whole)
    weights = load_file(tmp_path / "plain/open_clip_model.safetensors")
    del weights["logit_scale"]
    save_file(weights, tmp_path / "plain/open_clip_model.safetensors")
    assert main(["evaluate", str(tmp_path / "plain"), f"local:{tmp_path}/data"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "cannot be loaded by open_clip" in message


def test_a_tower_of_an_open_clip_model_is_not_saved_as_the_whole(tmp_path: Path) -> None:
    base = save_clip(tmp_path / "base", TINY_CLIP)
    model, _, _ = clip.open_clip().create_model_and_transforms(f"local-dir:{base}")
    with pytest.raises(UserError, match="weights of another model"):
        pruned(model.visual).save(tmp_path / "tower", base=base)
    assert not (tmp_path / "tower").exists()


def test_weights_that_are_not_zero_and_names_that_are_too_few_are_refused(
    classifier: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    made = pruned(perceptron())
    with torch.no_grad():
        made.model[0].weight.fill_(1.0)
    with pytest.raises(UserError, match=r"pruned weights of 0\.weight are not zero"):
        made.save(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mine is there already; name a new folder"):
        made.save(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").exists()
    with pytest.raises(UserError, match="classes: 1 names; allowed: 2, one for each"):
        classifier.save(tmp_path / "own", tokenizer=tiny_bert, classes=["bad"])
