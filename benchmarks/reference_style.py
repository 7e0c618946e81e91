"""ISP as research code is usually written: what ours is timed against (against_reference.py).

fp32; torch.nn.utils.prune's float masks, multiplied in at every forward pass; a DataLoader that
fetches sample by sample, padded to the longest length; every denoiser a model built anew, which
reads the whole loader and leaves out nine tenths of its batches; thresholds by sorting; a loss
that is fetched at every step; attention that is not fused, which is the quicker one on a CPU.
Steps, batch size, rates, sparsities and what is trained are ours.

Run in a prepared folder (common.prepare); prints one JSON line.
"""

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset

from instant_soup.config.sections import Training
from instant_soup.files import read_json, read_yaml
from instant_soup.methods.isp import ISP
from instant_soup.models.hugging_face import transformers_auto
from instant_soup.pipeline.plan import check
from instant_soup.training.schedule import steps_of


class Rows(Dataset):
    """An encoded split, one padded sample at a time."""

    def __init__(self, folder: Path, split_name: str = "train") -> None:
        split = load_file(folder / f"data/encoded/{split_name}.safetensors")
        self.ids, self.lengths = split["input_ids"].long(), split["lengths"]
        self.labels = split["labels"]
        self.positions = torch.arange(self.ids.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        mask = (self.positions < self.lengths[i]).long()
        return {"input_ids": self.ids[i], "attention_mask": mask, "labels": self.labels[i]}


def build(folder: Path, training: Training) -> Any:
    """The classifier, read from its files."""
    auto = transformers_auto()
    outputs = read_json(folder / "data/encoded/info.json")["outputs"]
    model = auto.AutoModelForSequenceClassification.from_pretrained(
        folder / "models/base", num_labels=outputs, local_files_only=True,
        attn_implementation="eager", trust_remote_code=False,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = float(training.dropout or 0.0)
        if isinstance(module, nn.Embedding):
            module.requires_grad_(not training.freeze_embeddings)
    return model


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The prunable layers."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in name
    }


def set_masks(model: nn.Module, found: dict[str, torch.Tensor]) -> None:
    """Prune the layers by float masks, instead of those that they have."""
    for name, layer in linears(model).items():
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")
        prune.custom_from_mask(layer, "weight", found[name])


def magnitude(model: nn.Module, sparsity: float, within: dict | None = None) -> dict:
    """Float masks of the largest weights, within others where given, by sorting all of them."""
    sizes = {name: layer.weight.detach().abs() for name, layer in linears(model).items()}
    if within:
        sizes = {name: size * within[name] for name, size in sizes.items()}
    every = torch.cat([size.flatten() for size in sizes.values()]).sort().values
    threshold = every[int(sparsity * len(every))]
    return {name: (size >= threshold).float() for name, size in sizes.items()}


def take_step(model: Any, batch: dict, optimizer: Any, clip_norm: float) -> float:
    """One training step; its loss."""
    loss = model(**batch).loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """PyTorch's default AdamW over what trains."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=weight_decay)


class MainRun:
    """The network, its optimiser and schedule, and the losses of the steps so far."""

    def __init__(self, folder: Path, training: Training) -> None:
        self.training = training
        self.loader = DataLoader(Rows(folder), training.batch_size, shuffle=True)
        self.steps_per_epoch = len(Rows(folder)) // training.batch_size
        self.total = steps_of(training.epochs, self.steps_per_epoch)
        self.model = build(folder, training)
        self.optimizer = adamw(self.model, training.learning_rate, training.weight_decay)
        decay = lambda step: max(0.0, 1 - step / self.total)  # noqa: E731
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, decay)
        self.losses: list[float] = []

    def train_to(self, last: int) -> None:
        """Train until `last` steps are done, an epoch at a time."""
        self.model.train()
        while True:
            for batch in self.loader:
                if len(self.losses) >= last:
                    return
                clip = self.training.clip_norm
                self.losses.append(take_step(self.model, batch, self.optimizer, clip))
                self.scheduler.step()


def weak_mask(folder: Path, run: MainRun, found: dict, sparsity: float, isp: ISP) -> dict:
    """One denoiser's mask: a copy of the network, trained briefly on some of the batches."""
    model = build(folder, run.training)
    if found:
        set_masks(model, found)
    model.load_state_dict(copy.deepcopy(run.model.state_dict()))
    factor = random.uniform(*isp.learning_rate_range)
    decay = random.uniform(*isp.weight_decay_range)
    optimizer = adamw(model, factor * run.training.learning_rate, decay)
    model.train()
    left = isp.look_ahead
    for batch in run.loader:
        if left and random.random() < isp.subset:
            take_step(model, batch, optimizer, run.training.clip_norm)
            left -= 1
    return magnitude(model, sparsity)


@torch.inference_mode()
def accuracy(folder: Path, model: Any) -> float:
    """Test accuracy."""
    model.eval()
    right = [
        model(**batch).logits.argmax(-1) == batch["labels"]
        for batch in DataLoader(Rows(folder, "test"), 100)
    ]
    return torch.cat(right).float().mean().item()


def whole_isp(folder: Path) -> dict[str, float]:
    """Instant Soup from start to end: wall seconds, steps, look-ahead steps.

    Then, not timed, what came out: test accuracy and sparsity.
    """
    params = check(read_yaml(folder / "params.yaml"))
    isp = params.isp
    random.seed(0)
    torch.manual_seed(0)
    started = time.perf_counter()
    run = MainRun(folder, params.training)
    t = steps_of(isp.calibration, run.steps_per_epoch)
    found: dict[str, torch.Tensor] = {}
    sparsities = isp.sparsities(params.top.sparsity)
    for i, sparsity in enumerate(sparsities):
        run.train_to(len(run.losses) + t * (i + 1))
        weak = [weak_mask(folder, run, found, sparsity, isp) for _ in range(isp.denoisers)]
        union = {name: (sum(m[name] for m in weak) > 0).float() for name in weak[0]}
        found = magnitude(run.model, sparsity, within=union)
        set_masks(run.model, found)
    run.train_to(run.total)
    wall = time.perf_counter() - started
    look_ahead = len(sparsities) * isp.denoisers * isp.look_ahead
    zeros = sum((mask == 0).sum().item() for mask in found.values())
    return {
        "seconds": wall,
        "steps": len(run.losses),
        "search_steps": look_ahead,
        "accuracy": accuracy(folder, run.model),
        "sparsity": zeros / sum(mask.numel() for mask in found.values()),
    }


def steps(folder: Path, count: int) -> float:
    """Mean wall seconds of a training step of a pruned network, after a few that do not count."""
    params = check(read_yaml(folder / "params.yaml"))
    torch.manual_seed(0)
    run = MainRun(folder, params.training)
    set_masks(run.model, magnitude(run.model, params.top.sparsity))
    run.train_to(3)
    started = time.perf_counter()
    run.train_to(3 + count)
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    print(json.dumps(whole_isp(Path.cwd())))
