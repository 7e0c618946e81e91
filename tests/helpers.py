"""What several test files share: small real models and data, projects, invented results."""

import contextlib
import copy
import hashlib
import itertools
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from instant_soup.config.sections import Recipe
from instant_soup.data import batches
from instant_soup.data.batches import Images, Texts
from instant_soup.files import read_json, read_yaml, write_json, write_yaml
from instant_soup.library.pruned import Pruned
from instant_soup.methods.registry import method_named
from instant_soup.models import bert, clip, hugging_face, matrices
from instant_soup.pipeline.plan import budget_of, plan
from instant_soup.pipeline.run import PipelineRun, budget, build
from instant_soup.pipeline.stage_files import TicketStage
from instant_soup.pipeline.workspace import ENCODED, START, load_start
from instant_soup.pretraining import llama_snippets
from instant_soup.reports import ledger
from instant_soup.reports.origins import apart_by_origin
from instant_soup.sparsity import masks
from instant_soup.sparsity.masks import Mask
from instant_soup.sparsity.ranking import Shards
from instant_soup.training import loop
from instant_soup.training.cost import Cost
from instant_soup.training.run import Run
from instant_soup.training.state import State, load_state

ROOT = Path(__file__).parent.parent
Weights = dict[str, torch.Tensor]


# Small real models and data

GOOD, BAD = ["fine", "great", "lovely", "bright"], ["poor", "awful", "dull", "weak"]
FILLERS = ["the", "film", "plot", "is", "was", "and", "a", "very", "quite", "cast"]


def make_table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Sentences of 3 to 12 words, label 1 when they hold more good words than bad."""
    draw = np.random.default_rng(seed)
    sentences, labels = [], []
    while len(sentences) < rows:
        label = int(draw.integers(2))
        words = list(draw.choice(FILLERS, draw.integers(2, 10)))
        words.insert(int(draw.integers(len(words) + 1)), str(draw.choice([BAD, GOOD][label])))
        sentences.append(" ".join(words) + f" {len(sentences)}")
        labels.append(label)
    return pd.DataFrame({"sentence": sentences, "label": labels})


def new_classifier(folder: Path, outputs: int, seed: int) -> Any:
    """A text classifier of a folder's configuration, all of its weights drawn from the seed."""
    torch.manual_seed(seed)
    auto = hugging_face.transformers_auto()
    config = bert.configuration(folder, outputs)
    return auto.AutoModelForSequenceClassification.from_config(config)


def random_texts() -> Any:
    """Forty rows of random tokens, as encoded; the label is in the second token."""
    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 13, (40,), generator=draws, dtype=torch.int32)
    ids = torch.randint(5, 20, (40, 12), generator=draws, dtype=torch.int32)
    ids[torch.arange(12) >= lengths[:, None]] = 0
    return Texts(ids, torch.zeros(40, 12, dtype=torch.uint8), lengths, (ids[:, 1] > 12).long())


def bert_settings(outputs: int, dropout: float | str = "model", frozen: bool = False) -> dict:
    """What bert.classifier wants to know beside the weights."""
    return {"outputs": outputs, "dropout": dropout, "freeze_embeddings": frozen}


def finish_run(folder: Path, model: Path, dataset: Path, data: dict, training: dict) -> Path:
    """A project folder with one finished method, one_shot, made by the stages' own scripts."""
    enough = {"epochs": 8, "batch_size": 16, "precision": "fp32", "learning_rate": 5e-3}
    rows = {"sparsity": 0.6, "methods": ["one_shot"]}
    make_project(folder, model, dataset, **rows, data=data, training={**enough, **training})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("find_ticket", "sparse_retrain", "evaluate"):
            run_script(stage, "--method", "one_shot")
    return folder


def write_pictures(
    folder: Path, bright: int = 160, dark: int = 60, spread: int = 50, size: tuple = (20, 24)
) -> Path:
    """Bright and dark pictures of noise in class folders: 60 of each to train, 20 to test."""
    draw = np.random.default_rng(0)
    for split, rows in (("train", 60), ("test", 20)):
        for name, level in (("bright", bright), ("dark", dark)):
            (folder / split / name).mkdir(parents=True)
            for i in range(rows):
                pixels = draw.integers(level - spread, level + spread, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def save_clip(folder: Path, config: dict, seed: int = 0, **preprocess: Any) -> Path:
    """Write an open_clip model with random weights in the layout of `local-dir:`."""
    package = clip.open_clip(clip.needs_optional(config))
    torch.manual_seed(seed)
    kind = package.CustomTextCLIP if config.get("custom_text") else package.CLIP
    model = kind(**{k: v for k, v in config.items() if k != "custom_text"})
    side = config["vision_cfg"]["image_size"]
    seen = {"size": side, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], **preprocess}
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"model_cfg": config, "preprocess_cfg": seen}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    weights = {name: w.contiguous() for name, w in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


_NARROW = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER = {**_NARROW, "intermediate_size": 64, "max_position_embeddings": 32,
            "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
# Tiny causal language models: architecture → what its configuration changes.
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "opt": {**_NARROW, "ffn_dim": 64, "max_position_embeddings": 32, "word_embed_proj_dim": 32},
    "llama": {**_DECODER, "tie_word_embeddings": True},
    "qwen2": {**_DECODER, "tie_word_embeddings": False},
    "mistral": _DECODER,
    "mixtral": {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
}
# Those, and others of which the files alone are tested.
EXPORTED: dict[str, dict[str, Any]] = {
    **CAUSAL,
    "qwen3": _DECODER,
    "qwen2_moe": {**_DECODER, "num_experts": 4, "moe_intermediate_size": 16,
                  "shared_expert_intermediate_size": 32},
}  # fmt: skip


# Whose blocks attend in two ways, give out tuples or more than that, have experts that are inputs ×
# outputs or called weights, or matrices that multiply by themselves.
ODD: dict[str, dict[str, Any]] = {
    "gemma3_text": {**_DECODER, "head_dim": 8, "sliding_window": 4,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_oss": {**_DECODER, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": {**_DECODER, "head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 32,
                    "interleave_moe_layer_step": 1, "layer_types": ["full_attention"] * 2},
    "jetmoe": {**_DECODER, "num_local_experts": 4, "kv_channels": 8},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip


def save_causal(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a tiny causal language model with random weights, and a BPE tokenizer beside it."""
    auto = hugging_face.transformers_auto()
    from transformers import AutoConfig

    words = [*GOOD, *BAD, *FILLERS]
    llama_snippets.train_tokenizer(folder, [" ".join(words)], 300)
    torch.manual_seed(0)
    tokens = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**tokens, **(EXPORTED | ODD)[kind], **changes})
    auto.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


# States and training


def copied(state: State) -> State:
    """The same state in memory of its own."""
    parts = (state.weights, state.first_moments, state.second_moments)
    return State(*({n: t.clone() for n, t in part.items()} for part in parts), step=state.step)


def prunable(state: State) -> dict[str, torch.Tensor]:
    """The prunable weights of a tiny BERT's state: the matrices of its layers."""
    return {n: w for n, w in state.weights.items() if ".layer." in n and w.ndim == 2}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A float tensor's bits: tells 0.0 from −0.0."""
    return tensor.contiguous().view(torch.int32)


def assert_same(one: State, other: State) -> None:
    """Two states are the same, bit for bit."""
    assert one.step == other.step
    for part in ("weights", "first_moments", "second_moments"):
        a, b = getattr(one, part), getattr(other, part)
        assert a.keys() == b.keys(), part
        odd = [n for n in a if not torch.equal(bits(a[n].float()), bits(b[n].float()))]
        assert odd == [], part


class FakeRun:
    """Takes the curve's rows as the tracked run does."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def curve(self, **row: Any) -> None:
        self.rows.append(row)

    def live(self) -> None:
        pass


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, how: Callable[[], None]) -> None:
    """Have `how` called within the given training step (counted from now, from 1)."""
    loss_of, calls = loop.loss_of, [0]

    def counted(*given: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == step:
            how()
        return loss_of(*given)

    monkeypatch.setattr(loop, "loss_of", counted)


# A project in this process, by the stages' own scripts


def make_project(folder: Path, model: Path | str, dataset: Path, **changes: Any) -> Path:
    """A project folder up to models/start, made by the stages' own scripts."""
    params = read_yaml(ROOT / "params.yaml")
    named = model if isinstance(model, str) else f"local:{model}"
    params |= {"dataset": f"local:{dataset}", "model": named}
    for key, value in changes.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_plan(params)
        for stage in ("prepare_data", "prepare_model", "encode_data", "attach_head"):
            run_script(stage)
    return folder


def training_for(epochs: float, **changes: Any) -> dict[str, Any]:
    """The section `training` of a project that learns something within few steps, with dropout."""
    quick = {"batch_size": 16, "precision": "fp32", "learning_rate": 2e-3, "dropout": 0.1}
    return {"epochs": epochs, **quick, **changes}


def work_in(project: Path, store: Path, patch: pytest.MonkeyPatch) -> Path:
    """Work in a project, with the store that is in a folder; returns the store's own folder."""
    patch.chdir(project)
    patch.setenv("DVC_ROOT", str(store))
    return store / ".dvc/tmp/instant-soup/store"


def write_plan(params: Any) -> None:
    """The stages' settings files, as the plan's stage writes them; without digests of sources."""
    for name, contents in plan(params).items():
        write_yaml(f"models/plan/{name}.yaml", contents)
    write_json("models/plan/budget.json", budget_of(params).contents())


def run_isp(rounds: int = 10) -> None:
    """All of ISP's stages but the evaluation."""
    for i in range(rounds):
        for stage in ("calibrate", "weak_mask", "mask_soup"):
            run_script(stage, "--round", i)
    run_script("sparse_retrain", "--method", "isp")


def run_row(method: str) -> None:
    """A row's stages but the evaluation; those that it is made of have run."""
    run_script("find_ticket", "--method", method)
    if method_named(method).needs:
        run_script("find_ticket", "--method", method, "--of", "isp")
    run_script("sparse_retrain", "--method", method)


def run_script(stage: str, *arguments: object) -> None:
    """Run a stage's script in this process, as DVC does in one of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{stage}.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / f"stages/{stage}.py"))["main"]()


def run_script_until(step: int, stage: str, *arguments: object) -> None:
    """Run a stage's script, and stop it within a training step (counted from 1)."""

    def stop() -> None:
        raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        interrupt_at(step, patch, stop)
        run_script(stage, *arguments)


def found_by(method: str, sparsity: float | None = None, **changes: Any) -> PipelineRun:
    """The run in which a planned row has found its ticket, as its stage does it.

    `changes` are of the method's settings.
    """
    stage = TicketStage.read(f"models/plan/ticket_{method}.yaml")
    stage = replace(stage, settings={**stage.settings, **changes})
    assert stage.recipe is not None
    run = PipelineRun(*load_start(START), stage.recipe, FakeRun(), code=stage.code)
    stage.build().find(run, stage.sparsity if sparsity is None else sparsity)
    return run


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every training step from now on."""
    loss_of, taken = loop.loss_of, []

    def counted(*given: Any) -> torch.Tensor:
        taken.append(1)
        return loss_of(*given)

    monkeypatch.setattr(loop, "loss_of", counted)
    return taken


def trained(state: State, mask: Mask, recipe: Recipe, last: int, cost: Cost | None = None) -> State:
    """A copy of a state, trained by the bare engine: no curve, no checkpoint."""
    cost = Cost() if cost is None else cost
    data = batches.load_split(ENCODED / "train.safetensors", torch.device("cpu"))
    total = budget(recipe).total
    network = build(state.copy(), recipe)
    state = state.copy()
    return loop.train(
        network, state, mask, data, recipe, cost, last=last, total=total, label="test"
    )


def same(one: Mask, other: Mask) -> bool:
    """Whether two masks are one."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def state_in(folder: str | Path) -> State:
    """The state in a folder, with its moments where it has them."""
    has_moments = (Path(folder) / "state/first_moments.safetensors").exists()
    return load_state(Path(folder) / "state", moments=has_moments)


def cost_in(folder: str | Path) -> dict:
    """What a run cost, by its file."""
    return read_json(Path(folder) / "run.json")["cost"]


def assert_same_weights(one: Weights, other: Weights) -> None:
    """Two networks are the same, bit for bit."""
    assert one.keys() == other.keys()
    assert [n for n, w in one.items() if not torch.equal(bits(w), bits(other[n]))] == []


# Digests of results


def machine() -> str:
    """What results' bits depend on: the processor and torch."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.machine())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def digest(tensors: Weights) -> str:
    """Sixteen hex digits of tensors by name."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


class Waits(Exception):
    """A shard has told what it has, and not all others have."""


def on_shards(parts: list[Any], work: Any) -> list[Any]:
    """`work(part, shards)` for each part. One that waits for others starts again when they told."""
    told: list[dict[int, torch.Tensor]] = []  # of each meeting, by shard

    def gather_as(number: int) -> Any:
        meetings = itertools.count()

        def gather(own: torch.Tensor) -> list[torch.Tensor]:
            at = next(meetings)
            if at == len(told):
                told.append({})
            told[at][number] = own
            if len(told[at]) < len(parts):
                raise Waits
            return [told[at][i] for i in range(len(parts))]

        return gather

    while True:
        found = []
        for number, part in enumerate(parts):
            with contextlib.suppress(Waits):
                found.append(work(part, Shards(number, gather_as(number))))
        if len(found) == len(parts):
            return found


# Toy networks

SPARSITIES = (0.1, 0.5, 0.7, 0.93)


class Toy(nn.Module):
    """A network of smooth layers with dropout between; takes batches of x and labels."""

    def __init__(self, *sizes: int, seed: int = 0, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = self.dropout(torch.tanh(layer(x)))
        return self.layers[-1](x)

    def matrices(self) -> Weights:
        """Copies of the weight matrices, under their names: what is prunable."""
        named = self.named_parameters()
        return {name: w.detach().clone() for name, w in named if name.endswith("weight")}


def batches_of(inputs: int, classes: int, batches: int = 3, rows: int = 4) -> list[Weights]:
    """Batches of random rows and labels."""
    draws = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(rows, inputs, generator=draws, dtype=torch.float64),
            "labels": torch.randint(classes, (rows,), generator=draws),
        }
        for _ in range(batches)
    ]


class BareRun(Run):
    """A run over weights in memory, without a store; of a network where one is given.

    Its batches are a list, its loss is the engine's. All of its networks are the one given.
    """

    def __init__(
        self,
        weights: Weights,
        seed: int = 0,
        network: nn.Module | None = None,
        batches: list[Weights] | None = None,
        looks_at: tuple[str, ...] = ("seed", "data"),
    ) -> None:
        recipe = Recipe(epochs=1.0, learning_rate=1e-3, precision="fp32", clip_norm=1.0, seed=seed)
        own = weights if network is None else network.state_dict()
        state = State({name: w.detach().clone() for name, w in own.items()})
        mask, total = masks.full(weights), 8
        super().__init__(state, mask, recipe, total, store=None, origin="", looks_at=looks_at)
        self.given, self.rows_of = network, batches or []

    @property
    def steps_per_epoch(self) -> int:
        return len(self.rows_of)

    @property
    def rows(self) -> int:
        return len(self.rows_of)

    def network(self, state: State, recipe: Recipe) -> nn.Module:
        assert self.given is not None
        self.given.load_state_dict(state.weights)
        return self.given

    def take(self, *given: Any, **named: Any) -> State:
        raise AssertionError("this run does not train")

    def batches(self, first: int, last: int) -> Iterator[Any]:
        yield from self.rows_of[first:last]

    def loss(self, network: nn.Module, batch: Any) -> torch.Tensor:
        return loop.loss_of(loop.logits_of(network, batch), batch["labels"])

    def flops(self, network: nn.Module, batch: Any) -> tuple[float, float]:
        return 0.0, 0.0

    def precision(self, recipe: Recipe) -> str:
        return recipe.precision

    def score(self, weights: Weights) -> float:
        raise AssertionError("this run has no validation data")


def text_run_of(folder: Path, padding: int = 0) -> BareRun:
    """A run of a text classifier on three batches of random tokens, with more padding if wanted."""
    rows, model = random_texts(), new_classifier(folder, 2, 0)
    three = [rows.rows(index) for index in torch.arange(12).split(4)]
    for batch in three:
        for name in ("input_ids", "token_type_ids", "attention_mask"):
            batch[name] = functional.pad(batch[name], (0, padding))
    return BareRun(matrices.prunable(model), network=model, batches=three)


def image_run_of(folder: Path) -> BareRun:
    """A run of a CLIP's image tower, under a random head of three classes, on batches of noise."""
    draws = torch.Generator().manual_seed(0)
    weights = load_file(folder / clip.WEIGHTS)
    visual = {name: w for name, w in weights.items() if name.startswith("visual.")}
    head = functional.normalize(torch.randn(3, 16, generator=draws), dim=1) * 10
    model = clip.classifier(folder, {**visual, "head": head})
    noise = torch.randint(0, 256, (12, 3, 32, 32), generator=draws, dtype=torch.uint8)
    rows = Images(noise, torch.arange(12) % 3)
    three = [rows.rows(index) for index in torch.arange(12).split(4)]
    own = {f"visual.{name}": w for name, w in matrices.prunable(model.visual).items()}
    return BareRun(own, network=model, batches=three)


# A repository of its own, with DVC


# Sparsity 0.6 takes rounds 0 and 1; 0.8 takes round 2 as well.
PIPELINE_PARAMS = {
    "sparsity": 0.6,
    "seed": 0,
    "preset": "quick",
    "methods": ["one_shot", "random"],
    "data": {"validation_rows": 40, "test_rows": 40, "max_length": 16},
    "training": {
        "epochs": 1,
        "batch_size": 8,
        "precision": "fp32",
        "learning_rate": 3e-3,
        "dropout": 0.1,
    },
    "isp": {"compression_rate": 0.3, "calibration": 0.1, "look_ahead": 2, "denoisers": 2},
}


def environment() -> dict[str, str]:
    """This process's environment, with its own Python and this checkout's sources first.

    No outer DVC or MLflow is in it.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
    }


def run_command(folder: Path, *command: str, ok: bool = True) -> str:
    """Run a command in the project; its output, after checking that it succeeded (or not)."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    assert (done.returncode == 0) == ok, done.stdout[-4000:]
    return done.stdout


def stages_run(output: str) -> set[str]:
    """The stages that DVC really ran, by its output."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def make_repository(
    folder: Path, model: Path, dataset: Path, *, rounds: int = 4, **changes: object
) -> Path:
    """A copy of this repository as a project of its own, with tiny parameters, committed.

    Of dvc.yaml's rounds it has the first few: each that a run does not need takes DVC a second.
    """
    listed = run_command(ROOT, "git", "ls-files", "-co", "--exclude-standard")
    for name in listed.splitlines():
        source = ROOT / name
        if source.is_file() and not name.startswith(("reports/", "tests/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    whole = (folder / "dvc.yaml").read_text()
    listed_rounds = re.findall(r" +- \{id: \d+, start: .+\}\n", whole)
    (folder / "dvc.yaml").write_text(whole.replace("".join(listed_rounds[rounds:]), ""))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    own = {"dataset": f"local:{dataset}", "model": f"local:{model}"}
    changes = {**PIPELINE_PARAMS, **own, **changes}
    for key, value in changes.items():
        params[key] = {**params[key], **value} if isinstance(value, dict) else value
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    run_command(folder, "git", "init", "-q")
    run_command(folder, "git", "add", "-A")
    run_command(folder, "git", "commit", "-qm", "project")
    return folder


# A model and a loop of one's own

PRUNE_SETTINGS: dict[str, Any] = {
    "steps": 24,
    "learning_rate": 3e-3,
    "sparsity": 0.6,
    "denoisers": 2,
    "look_ahead": 3,
    "precision": "fp32",
}


def perceptron(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 2))


def products(rows: int = 96) -> TensorDataset:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 8, generator=draws)
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def loader() -> DataLoader:
    return DataLoader(products(), batch_size=16, shuffle=True)


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def assert_pruned(pruned: Pruned, sparsity: float) -> None:
    """Exactly round(S · n) weights are pruned, and no weights but these are zero."""
    kept, total = masks.count(pruned.mask)
    assert total - kept == round(sparsity * total)
    parameters = dict(pruned.model.named_parameters())
    assert all(torch.equal(parameters[n] != 0, kept) for n, kept in pruned.mask.items())


# A Trainer

CALLBACK_SETTINGS: dict[str, Any] = {
    **{"sparsity": 0.6, "compression_rate": 0.3, "mask_finding": 0.5},
    **{"denoisers": 2, "look_ahead": 3},
}
TRAINER_STEPS = 24  # pruned after the steps 4 and 12: two rounds, the second twice as long


class Sentences(torch.utils.data.Dataset):
    """Rows of token ids; the label is whether the second one is a large number."""

    def __init__(self) -> None:
        self.ids = torch.randint(5, 20, (64, 10), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[row], "labels": (self.ids[row, 1] > 12).long()}


def trainer(
    folder: Path, model: nn.Module, *callbacks: Any, eval_dataset: Any = None, **more: Any
) -> Any:
    from transformers import Trainer, TrainingArguments  # late: seconds, which few tests need

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=TRAINER_STEPS, learning_rate=1e-2, weight_decay=0.1,
        report_to=[], disable_tqdm=True, use_cpu=True,
        **{"save_strategy": "no", "per_device_train_batch_size": 8, **more},
    )  # fmt: skip
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Sentences(),
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
    )


# A pruner without a network


@dataclass
class Driven:
    """Weights that a pruner was driven with, and the mask after each step."""

    pruner: Any
    weights: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    seen: list[Mask]

    def kept(self) -> tuple[Weights, dict, Weights]:
        """What a checkpoint would hold: to go on from."""
        weights = {name: p.detach() for name, p in self.weights.items()}
        return copy.deepcopy((weights, self.optimizer.state_dict(), self.pruner.tensors()))

    def zeros(self) -> int:
        return sum(int((p == 0).sum()) for p in self.weights.values())


def drive(
    pruner: Any,
    start: Weights,
    gradients: list[Weights],
    steps: range,
    kept: tuple[Weights, dict, Weights] | None = None,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=0.05),
) -> Driven:
    """Take steps with given gradients in the engine's order; `kept`: of an earlier drive.

    After each step the weights must be pruned as the pruner's mask says.
    """
    weights, state, tensors = kept or (start, None, {})
    parameters = {name: nn.Parameter(w.clone()) for name, w in weights.items()}
    optimizer = make(parameters.values())
    if state is not None:
        optimizer.load_state_dict(state)
    pruner.attach(parameters, optimizer, tensors)
    seen = []
    for at in steps:
        for name, gradient in gradients[at].items():
            parameters[name].grad = gradient.clone()
        pruner.after_backward(at)
        optimizer.step()
        optimizer.zero_grad()
        pruner.after_step(at)
        seen.append({name: mask.clone() for name, mask in pruner.mask.items()})
        assert not any(parameters[n].detach()[~mask].any() for n, mask in seen[-1].items())
        assert pruner.kept == masks.count(pruner.mask)[0]
    return Driven(pruner, parameters, optimizer, seen)


def assert_goes_on_to_the_bit(make: Callable[[], Any], cuts: Iterable[int], **how: Any) -> None:
    """A pruner of two matrices, stopped after some steps, goes on as if it had not been."""
    start, gradients = matrices_and_gradients()
    whole = drive(make(), start, gradients, range(len(gradients)), **how)
    assert whole.pruner.finished
    for cut in cuts:
        first = drive(make(), start, gradients, range(cut), **how)
        rest = drive(make(), start, gradients, range(cut, len(gradients)), first.kept(), **how)
        assert rest.pruner.finished
        assert all(torch.equal(w, rest.weights[name]) for name, w in whole.weights.items()), cut
        assert same(rest.pruner.mask, whole.pruner.mask), cut


def matrices_and_gradients(steps: int = 20) -> tuple[Weights, list[Weights]]:
    """Two random matrices (131 weights), and random gradients of each step."""
    draws = torch.Generator().manual_seed(0)
    shapes = {"w": (10, 11), "v": (3, 7)}

    def drawn() -> Weights:
        return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}

    return drawn(), [drawn() for _ in range(steps)]


# Masks

SHAPES = st.lists(
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
)


def joined(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Named tensors as one numpy vector, in order."""
    return torch.cat([t.flatten() for t in tensors.values()]).numpy()


def random_mask(shapes: list[tuple[int, ...]], seed: int) -> masks.Mask:
    """A mask of the given shapes, each weight kept by the toss of a coin."""
    draws = torch.Generator().manual_seed(seed)
    return {f"layer.{i}.w": torch.rand(s, generator=draws) < 0.5 for i, s in enumerate(shapes)}


# Checkpoints

BLOCKS = {
    f"bert.encoder.layer.{i}.{part}.weight": (8, 8)
    for i in (0, 2, 10)
    for part in ("attention.self.query", "output.dense")
}


def encoder_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of three layers, with an embedding, a pooler and a norm."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {**BLOCKS, "bert.embeddings.weight": (9, 8), "bert.pooler.weight": (8, 8)}
    shapes["bert.encoder.layer.0.norm.weight"] = (8,)
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


# Invented results

LAYERS = [f"bert.encoder.layer.{i}" for i in range(6)]


def result(method: str = "isp", value: float = 0.8, **changes: Any) -> dict[str, Any]:
    """A result as the evaluate stage writes it, with `changes` to its top-level entries."""
    metric = changes.get("metric", "accuracy")
    dense = method == "dense"
    cost: dict[str, float] = {"steps": 220, "search_steps": 0 if method != "isp" else 110}
    cost |= {"flops": 1.2e13 if method != "isp" else 1.8e13, "sparse_flops": 9e12, "seconds": 88.2}
    cost |= {"peak_memory": 3 * 2**29}
    return {
        "family": "bert",
        "model": "minilm",
        "dataset": "reviews",
        "method": method,
        "target_sparsity": 0.0 if dense else 0.7,
        "seed": 0,
        "preset": "quick",
        "variant": "",
        "metric": metric,
        "test": {metric: value},
        "sparsity": 0.0 if dense else 0.7,
        "layer_sparsity": [{"name": n, "sparsity": 0.0 if dense else 0.7} for n in LAYERS],
        "matrix_sparsity": [
            {"name": f"{layer}.{kind}.weight", "sparsity": 0.0 if dense else 0.6 + 0.05 * i}
            for i, layer in enumerate(LAYERS)
            for kind in ("attention.self.query", "output.dense")
        ],
        "overlap_one_shot": None if dense else 0.97,
        "cost": cost,
        "precision": "bf16",
        **changes,
    }


def of_seeds(method: str, *values: float, **changes: Any) -> list[dict[str, Any]]:
    """A method's results with seeds 0, 1, …"""
    return [result(method, value, seed=seed, **changes) for seed, value in enumerate(values)]


def ledger_of(folder: Path, *results: dict[str, Any]) -> pd.DataFrame:
    return ledger.merge_ledger(folder / "results.csv", list(results), "v1")


def ledger_with(*rows: dict[str, Any]) -> pd.DataFrame:
    """A ledger, apart by origin, of runs at the trials' place but for what these rows say."""
    usual = {
        **dict.fromkeys(ledger.COLUMNS, ""),
        **dict.fromkeys(ledger.NUMBERS, float("nan")),
        **{"model": "minilm", "dataset": "reviews-sentiment", "preset": "quick"},
        **{"metric": "accuracy", "family": "bert", "processor": "A", "base": "b", "seed": 0},
        **{"target_sparsity": 0.8, "value": 0.7, "validation": 0.7, "flops": 2.0},
    }
    lines = pd.DataFrame([{**usual, **row} for row in rows], columns=ledger.COLUMNS)
    return apart_by_origin(lines)


def cells_of(table: str, row: str) -> list[str]:
    """The cells of a Markdown table's row, without its name."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    return next(line[1:] for line in lines if line[0] == row)
