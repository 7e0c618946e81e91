"""Exported tickets: stock libraries load them, in a process that has never heard of us."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import ROOT, run_script
from instant_soup.config.sections import Recipe
from instant_soup.data import batches
from instant_soup.data.datasets import Dataset
from instant_soup.errors import UserError
from instant_soup.files import SEAL, read_json, read_yaml, write_json, write_yaml
from instant_soup.methods import registry
from instant_soup.models import base as models
from instant_soup.models import torchvision_cpu
from instant_soup.models.head import Head
from instant_soup.models.known import MODELS, BaseModel, resolve_model
from instant_soup.pipeline.plan import plan
from instant_soup.pipeline.run import build
from instant_soup.pipeline.workspace import ENCODED
from instant_soup.sparsity import compact, masks
from instant_soup.tickets import card, evaluate, export
from instant_soup.training import loop
from instant_soup.training.state import load_state

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

SOURCES = str(ROOT / "src")

# One file of ours runs, by its path: it lets torchvision be imported beside a CPU build of torch.
DECLARE = """
import json, runpy, sys
torchvision_cpu = runpy.run_path(sys.argv[1])
torchvision_cpu["declare_missing_operators"]()
"""
# A clean process: our package cannot be imported in it.
CLEAN = f"""
{DECLARE}
sys.modules["instant_soup"] = None
import torch
torch.set_num_threads(1)
folder, out = sys.argv[2], {{}}
"""
TEXTS = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, loading = AutoModelForSequenceClassification.from_pretrained(
    folder, output_loading_info=True
)
tokenizer = AutoTokenizer.from_pretrained(folder)
sentences = json.load(open(sys.argv[3]))
batch = tokenizer(sentences, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    out["logits"] = model.eval()(**batch).logits.float().tolist()
out["length"] = batch["input_ids"].shape[1]
out["loading"] = {key: sorted(map(str, value)) for key, value in loading.items()}
out["id2label"], out["label2id"] = model.config.id2label, model.config.label2id
out["dtype"] = str(next(model.parameters()).dtype)
"""
IMAGES = """
import open_clip
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
ticket = json.load(open(f"{folder}/ticket.json"))
head = open_clip.build_zero_shot_classifier(
    model.eval(), tokenizer, ticket["classes"], ticket["templates"]
)
images = torch.stack([preprocess(Image.open(path)) for path in json.load(open(sys.argv[3]))])
with torch.no_grad():
    logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ head
out["logits"] = logits.tolist()
"""
LAST = """
out["zeros"] = {name: int((w == 0).sum()) for name, w in model.state_dict().items()}
print(json.dumps(out))
"""


def in_a_clean_process(script: str, folder: Path, inputs: list[str], tmp_path: Path) -> Any:
    """What a script finds of an exported folder and some inputs, without our package."""
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = [torchvision_cpu.__file__, str(folder), str(tmp_path / "inputs.json")]
    done = subprocess.run(
        [sys.executable, "-c", CLEAN + script + LAST, *arguments],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def our_logits(run: Path) -> torch.Tensor:
    """The logits of the run's own network on the test split, in the order of its rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        state = load_state("models/retrained/one_shot/state", moments=False)
        network = build(state, Recipe(dropout="model", freeze_embeddings=True)).eval()
        data = batches.load_split(ENCODED / "test.safetensors", torch.device("cpu"))
        with torch.no_grad():
            return loop.logits_of(network, data.rows(torch.arange(len(data))))


def exported(run: Path, folder: Path, **options: Any) -> Path:
    """A folder exported from a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        export.export("one_shot", folder, **options)
    return folder


@pytest.fixture(scope="module")
def texts(text_run: Path, tmp_path_factory) -> Path:
    return exported(text_run, tmp_path_factory.mktemp("texts") / "ticket")


@pytest.fixture(scope="module")
def images(image_run: Path, tmp_path_factory) -> Path:
    return exported(image_run, tmp_path_factory.mktemp("images") / "ticket")


@pytest.fixture(params=["texts", "images"])
def family(request: pytest.FixtureRequest, text_run: Path, image_run: Path) -> tuple[Path, Path]:
    """A run, and the folder exported from it."""
    run = {"texts": text_run, "images": image_run}[request.param]
    return run, request.getfixturevalue(request.param)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


# Stock libraries


def test_transformers_loads_a_text_ticket_as_it_is(text_run: Path, texts: Path, tmp_path: Path):
    sentences = pd.read_parquet(text_run / "data/prepared/test.parquet")["sentence"].tolist()
    found = in_a_clean_process(TEXTS, texts, sentences, tmp_path)
    logits = torch.tensor(found["logits"])
    torch.testing.assert_close(logits, our_logits(text_run), rtol=1e-5, atol=1e-5)
    assert logits.argmax(1).unique().tolist() == [0, 1]
    assert not any(found["loading"].values())
    assert found["id2label"] == {"0": "bad", "1": "good"}
    assert found["label2id"] == {"bad": 0, "good": 1}
    assert found["length"] == 12 and found["dtype"] == "torch.float32"
    mask = masks.load(texts / "mask.safetensors")
    assert sum(found["zeros"][name] for name in mask) == masks.count(mask)[1] - masks.count(mask)[0]


def test_open_clip_loads_an_image_ticket_as_it_is(image_run: Path, images: Path, tmp_path: Path):
    """Zero-shot with the prompts, by its own preprocessing, it is the trained classifier."""
    dataset = Path(read_yaml(image_run / "models/plan/data.yaml")["path"])
    paths = [str(p) for name in ("bright", "dark")
             for p in sorted((dataset / "test" / name).iterdir())]  # fmt: skip
    found = in_a_clean_process(IMAGES, images, paths, tmp_path)
    logits = torch.tensor(found["logits"])
    torch.testing.assert_close(logits, our_logits(image_run), rtol=1e-4, atol=1e-4)
    mask = masks.load(images / "mask.safetensors")
    assert all(name.startswith("visual.") for name in mask)
    assert sum(found["zeros"][name] for name in mask) == masks.count(mask)[1] - masks.count(mask)[0]


def test_a_bf16_ticket_loads_as_bf16_and_is_near(text_run: Path, tmp_path: Path):
    folder = exported(text_run, tmp_path / "ticket", dtype="bf16")
    sentences = pd.read_parquet(text_run / "data/prepared/test.parquet")["sentence"].tolist()
    found = in_a_clean_process(TEXTS, folder, sentences, tmp_path)
    assert found["dtype"] == "torch.bfloat16"
    torch.testing.assert_close(
        torch.tensor(found["logits"]), our_logits(text_run), rtol=0.1, atol=0.1
    )
    assert {w.dtype for w in weights_of(folder).values()} == {torch.bfloat16}


# Runs scripts one after another, each in its folder and with no name of the one before.
ONE_AFTER_THE_OTHER = """
import json, os
for folder, script in json.load(sys.stdin):
    os.chdir(folder)
    exec(script, {"__name__": "__main__"})
"""


def as_they_stand(*pages: tuple[list[str], Path]) -> list[str]:
    """The lines that the snippets of pages print, each page's in a folder, in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": SOURCES, "HF_HUB_OFFLINE": "1"}
    scripts = [(str(folder), "\n".join(snippets)) for snippets, folder in pages]
    done = subprocess.run(
        [sys.executable, "-c", DECLARE + ONE_AFTER_THE_OTHER, torchvision_cpu.__file__],
        input=json.dumps(scripts),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def python_blocks(text: str) -> list[str]:
    """The Python code in a Markdown text."""
    return [part.split("```")[0] for part in text.split("```python\n")[1:]]


def test_the_snippets_of_cards_and_docs_run(family, tmp_path: Path):
    """As they stand: a card's in the exported folder, those of docs/export.md beside models/."""
    run, folder = family
    images = (folder / "open_clip_config.json").exists()
    ticket = Path(shutil.copytree(folder, tmp_path / "models/exported/isp"))
    if images:
        pictures = Path(read_yaml(run / "models/plan/data.yaml")["path"])
        for place in (ticket, tmp_path):
            shutil.copyfile(pictures / "test/dark/0.png", place / "image.png")
    answers = ("bright", "dark") if images else ("bad", "good")
    card = python_blocks((folder / "README.md").read_text())
    blocks = python_blocks((ROOT / "docs/export.md").read_text())
    blocks = [block for block in blocks if "AutoModelForCausalLM" not in block]
    mine = [block for block in blocks if ("open_clip" in block) == images]
    by_card, *printed = as_they_stand((card, ticket), (mine, tmp_path))
    assert by_card in answers and printed[0] in answers
    if not images:
        mask = masks.load(folder / "mask.safetensors")
        assert int(printed[1]) == masks.count(mask)[1] - masks.count(mask)[0]
        assert printed[2].startswith("tensor([[")
        assert printed[3].startswith(f"{masks.sparsity(mask)} {{'name': 'bert.encoder.layer.0'")


# What is in the folder


def test_weights_are_the_trained_ones_under_the_models_own_names(family):
    run, folder = family
    trained = load_state(run / "models/retrained/one_shot/state", False).weights
    after = weights_of(folder)
    base = next((run / "models/base").glob("*model.safetensors"))
    before = load_file(base)
    images = "head" in trained
    assert after.keys() == (before.keys() if images else trained.keys())
    for name, w in after.items():
        text_tower = images and not name.startswith("visual.")
        assert torch.equal(w, before[name] if text_tower else trained[name]), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_compact_file_holds_the_very_same_weights(family, dtype: str, tmp_path: Path):
    run, folder = family
    folder = exported(run, tmp_path / "ticket", dtype=dtype)
    weights, back = weights_of(folder), compact.load(folder / "compact.safetensors")
    assert back.keys() == weights.keys()
    assert all(w.dtype == back[n].dtype and torch.equal(w, back[n]) for n, w in weights.items())
    mask = masks.load(folder / "mask.safetensors")
    again = compact.load_mask(folder / "compact.safetensors")
    assert all(torch.equal(again[name], kept) for name, kept in mask.items())
    assert all(not weights[name][~kept].any() for name, kept in mask.items())


def test_nothing_tells_of_the_machine_that_made_it(family):
    run, folder = family
    for file in folder.iterdir():
        content = file.read_bytes()
        assert str(run).encode() not in content, file.name
        assert b"pytest-of" not in content and os.fsencode(Path.home()) not in content, file.name
        assert b"local_files_only" not in content, file.name


def test_all_may_read_what_one_may_read(family):
    """The umask decides, not the library that wrote a file."""
    _, folder = family
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_the_ticket_says_what_it_is(text_run: Path, texts: Path, images: Path):
    ticket = read_json(texts / "ticket.json")
    result = read_json(text_run / "reports/results/one_shot.json")
    assert ticket["test"] == result["test"] and ticket["classes"] == ["bad", "good"]
    assert (ticket["max_length"], ticket["columns"], ticket["dtype"]) == (12, ["sentence"], "fp32")
    ticket = read_json(images / "ticket.json")
    assert ticket["classes"] == ["bright", "dark"]
    assert ticket["templates"] == ["a photo of a {}."]


def test_the_stage_writes_what_the_function_writes(family, monkeypatch: pytest.MonkeyPatch):
    run, folder = family
    monkeypatch.chdir(run)
    run_script("export", "--method", "one_shot")
    stage = run / "models/exported/one_shot"
    assert {p.name for p in stage.iterdir()} == {p.name for p in folder.iterdir()}
    for file in folder.iterdir():
        assert (stage / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_stage_writes_the_dtype_of_the_plan(family, tmp_path, monkeypatch: pytest.MonkeyPatch):
    run, _ = family
    told = exported(run, tmp_path / "told", dtype="bf16")
    run = Path(shutil.copytree(run, tmp_path / "run"))
    write_yaml(run / "models/plan/export.yaml", {"dtype": "bf16"})
    monkeypatch.chdir(run)
    run_script("export", "--method", "one_shot")
    for file in told.iterdir():
        written = run / "models/exported/one_shot" / file.name
        assert written.read_bytes() == file.read_bytes(), file.name
    assert {w.dtype for w in weights_of(told).values()} == {torch.bfloat16}


def test_squares_are_cut_as_the_pipeline_cuts_them(images: Path):
    """Whatever way of resizing the base model names."""
    seen = read_json(images / "open_clip_config.json")["preprocess_cfg"]
    assert (seen["resize_mode"], seen["interpolation"]) == ("shortest", "bicubic")
    assert seen["mean"] == [0.5, 0.4, 0.3]


# What is refused


def refusal(run: Path, method: str, folder: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run)
        with pytest.raises(UserError) as caught:
            export.export(method, folder)
    assert "\n" not in str(caught.value) and not folder.exists()
    return str(caught.value)


def test_a_method_that_has_not_run_is_refused(text_run: Path, tmp_path: Path):
    assert "no finished run of 'isp' here; finished are one_shot" in refusal(
        text_run, "isp", tmp_path / "ticket"
    )
    (tmp_path / "empty").mkdir()
    assert "nothing is finished" in refusal(tmp_path / "empty", "isp", tmp_path / "ticket")


def test_a_result_of_another_run_is_refused(text_run: Path, tmp_path: Path):
    """Results are in Git, models are not: after a checkout they may not belong together."""
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    path = run / "reports/results/one_shot.json"
    result = read_json(path)
    write_json(path, {**result, "cost": {**result["cost"], "seconds": 1.0}})
    assert "is not of this run of one_shot" in refusal(run, "one_shot", tmp_path / "ticket")
    write_json(path, {key: value for key, value in result.items() if key != "family"})
    assert "is not of this run of one_shot" in refusal(run, "one_shot", tmp_path / "ticket")


@pytest.mark.parametrize(
    ("file", "changes", "what"),
    [
        ("data", {"labels": ["ham", "spam"]}, r"models/plan (labels)"),
        ("data", {"name": "local:other"}, r"models/plan (dataset)"),
        ("data", {"text": ["words"]}, r"models/plan (text)"),
        ("base", {"name": "local:other"}, r"models/plan (model)"),
        ("encode", {"max_length": 20}, r"models/plan (max_length)"),
    ],
)
def test_a_plan_that_is_newer_than_the_run_is_refused(text_run, tmp_path, file, changes, what):
    """As after a `dvc repro` that was interrupted."""
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    path = run / f"models/plan/{file}.yaml"
    write_yaml(path, read_yaml(path) | changes)
    line = refusal(run, "one_shot", tmp_path / "ticket")
    assert line == f"{what}: not that of the finished run of one_shot: `dvc repro`"


def test_prompts_that_are_newer_than_the_run_are_refused(image_run: Path, tmp_path: Path):
    run = Path(shutil.copytree(image_run, tmp_path / "run"))
    path = run / "models/plan/data.yaml"
    write_yaml(path, read_yaml(path) | {"templates": ["{}"]})
    assert "models/plan (templates)" in refusal(run, "one_shot", tmp_path / "ticket")


def test_data_or_a_base_model_newer_than_the_run_are_refused(text_run: Path, tmp_path: Path):
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    info, config = run / "data/encoded/info.json", run / "models/base/config.json"
    weights = run / "models/base/model.safetensors"
    for path in (info, config):
        before = read_json(path)
        write_json(path, before | {"of": "another run"})
        line = refusal(run, "one_shot", tmp_path / "ticket")
        assert line.startswith("data/encoded or models/base: not that of the finished run")
        write_json(path, before)
    save_file({name: w + 1 for name, w in load_file(weights).items()}, weights)
    line = refusal(run, "one_shot", tmp_path / "ticket")
    assert line.startswith("models/base: not that of the finished run")


def test_a_network_with_a_pruned_weight_that_is_not_zero_is_refused(text_run: Path, tmp_path):
    run = Path(shutil.copytree(text_run, tmp_path / "run"))
    path = run / "models/retrained/one_shot/state/weights.safetensors"
    mask = masks.load(run / "models/retrained/one_shot/mask.safetensors")
    weights, name = load_file(path), next(iter(mask))
    save_file({**weights, name: weights[name] + 1}, path)
    (path.parent / SEAL).unlink()
    assert f"pruned weights of {name} are not zero" in refusal(run, "one_shot", tmp_path / "ticket")


# Evaluation


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_ticket_scores_what_its_run_scored(family, dtype: str, tmp_path: Path):
    run, _ = family
    folder = exported(run, tmp_path / "ticket", dtype=dtype)
    dataset = read_yaml(run / "models/plan/data.yaml")["path"]
    found = evaluate.evaluate(folder, f"local:{dataset}", precision="fp32")
    expected = read_json(run / "reports/results/one_shot.json")["test"]
    if dtype == "fp32":
        assert found["metrics"] == expected
    assert found["metrics"] == pytest.approx(expected, abs=0.1)
    assert found["rows"] == (60 if "sentences" in dataset else 40)
    assert expected["accuracy"] > 0.6


def test_class_names_of_a_folder_are_the_tickets(texts: Path, tmp_path: Path):
    """A test split with one class only, or with numbers, has the ticket's classes."""
    rows = pd.DataFrame({"sentence": ["the film is fine", "a dull plot"], "label": ["good", "bad"]})
    rows.to_csv(tmp_path / "train.csv", index=False)
    rows.iloc[:1].to_csv(tmp_path / "test.csv", index=False)
    named = evaluate.evaluate(texts, f"local:{tmp_path}")
    numbered = rows.assign(label=[1, 0])
    numbered.to_csv(tmp_path / "train.csv", index=False)
    numbered.iloc[:1].to_csv(tmp_path / "test.csv", index=False)
    assert evaluate.evaluate(texts, f"local:{tmp_path}") == named and named["rows"] == 1


def test_columns_can_be_named(texts: Path, tmp_path: Path):
    rows = pd.DataFrame({"words": ["the film is fine", "a dull plot"], "stars": ["good", "bad"]})
    for split in ("train", "test"):
        rows.to_csv(tmp_path / f"{split}.csv", index=False)
    found = evaluate.evaluate(texts, f"local:{tmp_path}", ["words"], "stars")
    assert found["rows"] == 2
    with pytest.raises(UserError, match=r"no column 'sentence'; the data has \['words', 'stars'\]"):
        evaluate.evaluate(texts, f"local:{tmp_path}")
    with pytest.raises(UserError, match="columns: a b c: too many; allowed: one or two, of texts"):
        evaluate.evaluate(texts, f"local:{tmp_path}", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["2", "good"], ["good", "2"]),  # words and numbers
        (["0", "1"], [1.0, 0.0]),  # which parquet has for want of whole numbers
    ],
)
def test_classes_of_ones_own_kind_are_the_tickets(
    texts: Path, tmp_path: Path, names: list[str], labels: list
):
    """Of data whose labels alone do not say that they are classes."""
    folder = Path(shutil.copytree(texts, tmp_path / "ticket"))
    write_json(folder / "ticket.json", read_json(folder / "ticket.json") | {"classes": names})
    rows = pd.DataFrame({"sentence": ["the film is fine", "a dull plot"], "label": labels})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / f"data/{split}.parquet")
    found = evaluate.evaluate(folder, f"local:{tmp_path}/data")
    rows.assign(label=["good", "bad"]).to_parquet(tmp_path / "data/train.parquet")
    rows.assign(label=["good", "bad"]).to_parquet(tmp_path / "data/test.parquet")
    assert found["metrics"] == evaluate.evaluate(texts, f"local:{tmp_path}/data")["metrics"]


def test_columns_of_a_ticket_are_those_of_tables(images: Path, tmp_path: Path):
    """Class folders have none, whatever the table was called that the ticket is of."""
    folder = Path(shutil.copytree(images, tmp_path / "ticket"))
    ticket = read_json(folder / "ticket.json")
    write_json(folder / "ticket.json", {**ticket, "label": "what", "columns": ["picture"]})
    for split in ("train", "test"):
        for number, name in enumerate(ticket["classes"]):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"data/{split}/{name}/a.png")
    found = evaluate.evaluate(folder, f"local:{tmp_path}/data")
    assert found["rows"] == len(ticket["classes"])
    with pytest.raises(UserError, match=r"data\.label: kind: class folders have no columns"):
        evaluate.evaluate(folder, f"local:{tmp_path}/data", label="kind")


def test_data_that_does_not_go_with_a_ticket_is_refused(texts: Path, images: Path, tmp_path: Path):
    rows = pd.DataFrame({"sentence": list("abcd"), "label": [0.5, 1.0, 2.0, 3.5]})
    (tmp_path / "floats").mkdir()
    rows.to_csv(tmp_path / "floats/train.csv", index=False)
    (tmp_path / "others").mkdir()
    rows.assign(label=["yes", "no"] * 2).to_csv(tmp_path / "others/train.csv", index=False)
    cases = [
        (texts, "sst-2", "did you mean sst2"),
        (texts, "mnist-sample", "holds images, but model: .* reads texts"),
        (images, "sst2", "holds texts, but model: .* reads images"),
        (texts, "stsb", "stsb is regression, the ticket's is classification"),
        (texts, "mnli", "has the classes entailment, neutral, .*; the ticket's are bad, good"),
        (texts, f"local:{tmp_path}/floats", "data.kind: classification does not fit .* '0.5' in"),
        (texts, f"local:{tmp_path}/others", "label 'no' in row . does not fit|label 'yes' in row"),
        (texts, f"local:{tmp_path}/nowhere", "no folder"),
        (texts, "local:", "unknown 'local:'"),
        (tmp_path, "sst2", "not an exported ticket"),
    ]
    for folder, dataset, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            evaluate.evaluate(folder, dataset)
        assert "\n" not in str(caught.value)


def test_a_local_copy_of_a_hub_dataset_can_be_named(texts: Path, tmp_path: Path):
    """Its test split is the dataset's, validation for GLUE."""
    folder = Path(shutil.copytree(texts, tmp_path / "ticket"))
    facts = {"dataset": "sst2@local", "classes": ["negative", "positive"]}
    write_json(folder / "ticket.json", read_json(folder / "ticket.json") | facts)
    rows = pd.DataFrame({"sentence": ["the film is fine", "a dull plot"] * 2, "label": [1, 0] * 2})
    (tmp_path / "sst2").mkdir()
    for split, count in (("train", 4), ("validation", 3), ("test", 2)):
        rows.head(count).to_parquet(tmp_path / f"sst2/{split}.parquet")
    found = evaluate.evaluate(folder, "sst2", path=tmp_path / "sst2")
    assert (found["dataset"], found["rows"]) == ("sst2@local", 3)
    for dataset, words in (("reviews-sentiment", "is packaged"), ("local:sst2", "already named")):
        with pytest.raises(UserError, match=words):
            evaluate.evaluate(folder, dataset, path=tmp_path / "sst2")


def test_a_damaged_ticket_is_refused(texts: Path, tmp_path: Path):
    folder = Path(shutil.copytree(texts, tmp_path / "ticket"))
    (folder / "model.safetensors").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read as safetensors"):
        evaluate.evaluate(folder, "sst2")
    write_json(folder / "ticket.json", {"format": "another"})
    with pytest.raises(UserError, match="not of the format"):
        evaluate.evaluate(folder, "sst2")


def test_an_image_ticket_takes_on_another_datasets_classes(images: Path):
    """Zero-shot: the digits' names and prompts go through its own text tower."""
    found = evaluate.evaluate(images, "mnist-sample")
    assert (found["dataset"], found["rows"]) == ("mnist-sample", 1000)
    assert set(found["metrics"]) == {"accuracy", "f1", "matthews"}


def test_prompts_of_ones_own_stay_the_tickets(images: Path, tmp_path: Path):
    """On the dataset that it was trained on, whatever names the dataset has by default."""
    folder = Path(shutil.copytree(images, tmp_path / "ticket"))
    ticket = read_json(folder / "ticket.json") | {"dataset": "mnist-sample", "templates": ["{}"]}
    names = [f"a {word}" for word in "abcdefghij"]
    write_json(folder / "ticket.json", {**ticket, "classes": names})
    own = evaluate.evaluate(folder, "mnist-sample")
    write_json(folder / "ticket.json", {**ticket, "classes": names[::-1]})
    turned = evaluate.evaluate(folder, "mnist-sample")
    assert own["metrics"] != turned["metrics"]


# The model card


def test_the_hub_can_read_the_card(family):
    run, folder = family
    card = ModelCard((folder / "README.md").read_text())
    result = read_json(run / "reports/results/one_shot.json")
    found = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert found["accuracy"] == result["test"]["accuracy"]
    assert found["matthews_correlation"] == result["test"]["matthews"]
    task = {"bert": "text-classification", "clip": "zero-shot-image-classification"}
    library = {"bert": "transformers", "clip": "open_clip"}[result["family"]]
    assert (card.data.library_name, card.data.pipeline_tag) == (library, task[result["family"]])
    assert {r.task_type for r in card.data.eval_results} == {task[result["family"]]}
    assert "base_model" not in card.data.to_dict() and "datasets" not in card.data.to_dict()


def test_the_card_tells_sparsity_densities_and_cost(family):
    run, folder = family
    text = (folder / "README.md").read_text()
    result = read_json(run / "reports/results/one_shot.json")
    exact = f"{result['pruned_weights']:,} of {result['prunable_weights']:,} prunable weights"
    assert exact in text
    for layer in result["layer_sparsity"]:
        assert f"| {layer['name']} | {1 - layer['sparsity']:.4f} |" in text
    assert f"| training steps | {result['cost']['steps']} |" in text
    assert f"{result['cost']['flops']:.3g}" in text
    assert "The code's commit is not known." in text  # the run's folder is no repository


RESULT = {
    **{"model": "minilm", "dataset": "sst2", "method": "snip", "seed": 1, "preset": "quick"},
    **{"variant": "", "target_sparsity": 0.7, "code_version": "abc1234", "family": "bert"},
}


@pytest.mark.parametrize(
    ("changes", "source", "expected", "notes"),
    [
        (
            {},
            "packaged",
            "git checkout abc1234\ndvc exp run \\\n  -S model=minilm \\\n  -S dataset=sst2 \\\n"
            "  -S preset=quick \\\n  -S seed=1 \\\n  -S sparsity=0.7 \\\n"
            "  -S 'methods=[snip]' \\\n  -S 'exports=[snip]' \\\n  -S export_dtype=bf16",
            "",
        ),
        ({"method": "lottery_pool"}, "packaged", "-S 'methods=[lottery_pool]'", ""),
        ({"method": "random_init"}, "packaged", "-S 'methods=[random_init]'", ""),
        ({"variant": "isp.combine=vote data.train_rows=9"}, "packaged", "-S isp.combine=vote", ""),
        ({"model": "hub:org/bert"}, "hub", "-S model=hub:org/bert", ""),
        ({"model": "bert-base"}, "hub", "-S model=bert-base", ""),
        ({"model": "local:mine"}, "local", "-S model=local:mine", "local:mine: not in the repo"),
        ({"dataset": "sst2@local"}, "packaged", "-S data.path=FOLDER", "sst2@local: not in"),
        ({"code_version": "abc1234+"}, "packaged", "git checkout abc1234\n", "code differed"),
        ({"preset": "paper"}, "packaged", "-S preset=paper", ""),
        ({"variant": "isp.denoisers=6"}, "packaged", "-S isp.denoisers=6", ""),
        ({"method": "greedy_soup"}, "packaged", "-S 'methods=[greedy_soup]'", ""),
        (
            {"dataset": "local:mine"},
            "packaged",
            "-S 'data.text=[a,b]' \\\n  -S data.label=stars",
            "folder",
        ),
    ],
)
def test_the_card_says_how_to_make_the_ticket_again(changes, source, expected, notes):
    data = Dataset(text=["a", "b"], label="stars")
    base = BaseModel("minilm", "bert", source)
    text = card.regenerate({**RESULT, **changes}, data, base, "bf16")
    assert expected in text
    assert notes in text
    if not notes:
        assert text.endswith("```")


def test_dense_is_made_again_without_a_sparsity():
    dense = {**RESULT, "method": "dense", "target_sparsity": 0.0}
    found = card.changes(dense, Dataset(), MODELS["minilm"], "fp32")
    assert "sparsity" not in found and "methods" not in found and found["exports"] == "[dense]"


@pytest.mark.parametrize("method", registry.methods())
def test_what_a_card_says_is_a_plan_with_the_row(method: str):
    """Whatever the method and the preset, as the row's own variant has it."""
    result = {**RESULT, "method": method, "preset": "paper", "target_sparsity": 0.75}
    result |= {"variant": "isp.denoisers=2 training.epochs=12.0"}
    params = read_yaml(ROOT / "params.yaml") | {"methods": []}
    for key, value in card.changes(result, Dataset(), MODELS["minilm"], "fp32").items():
        section, _, name = key.rpartition(".")
        (params[section] if section else params)[name] = yaml.safe_load(str(value))
    files = plan(params)
    assert files[f"evaluate_{method}"]["target_sparsity"] == (
        0.0 if registry.method_named(method).dense else 0.75
    )
    assert files[f"evaluate_{method}"]["variant"].startswith("training.epochs=12")


def test_what_is_on_the_hub_is_named_as_the_cards_base_and_dataset():
    result = {**RESULT, "family": "bert", "test": {"pearson": 0.5}, "metric": "pearson"}
    data = Dataset(source="hub", hub=["nyu-mll/glue", "stsb"], test="validation")
    base = BaseModel("org/bert", "bert", "hub", repo="org/bert")
    found = card.front_matter(result, data, base)
    assert found["base_model"] == "org/bert" and found["datasets"] == ["nyu-mll/glue"]
    (entry,) = found["model-index"][0]["results"]
    assert entry["dataset"] == {
        **{"type": "nyu-mll/glue", "name": "sst2", "config": "stsb", "split": "validation"}
    }
    assert entry["metrics"] == [{"type": "pearsonr", "value": 0.5}]


def test_a_folder_too_small_for_a_test_split_is_refused(texts: Path, tmp_path: Path):
    rows = pd.DataFrame({"sentence": ["fine", "dull"], "label": ["good", "bad"]})
    rows.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(UserError, match="too few rows to cut a test split from"):
        evaluate.evaluate(texts, f"local:{tmp_path}")


# A ticket as a base model


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_ticket_is_a_base_model_again(
    text_run: Path, image_run: Path, tmp_path: Path, dtype: str
) -> None:
    for run, name, head in (
        (text_run, "text", Head(outputs=3, seed=1)),
        (image_run, "image", Head(classes=["a", "b"], templates=["{}"])),
    ):
        ticket, base = exported(run, tmp_path / name, dtype=dtype), tmp_path / f"{name}-base"
        model = resolve_model(f"local:{ticket}")
        base.mkdir()
        known = models.family_named(model.family)
        found = known.prepare_base(model, base)
        assert found.keys() == masks.load(ticket / "mask.safetensors").keys()
        start = known.start_weights(base, head)
        network = known.classifier(base, start, outputs=3)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        kept = load_file(ticket / known.WEIGHTS)
        assert all(torch.equal(start[n], kept[n].float()) for n in found)
