"""A `transformers.Trainer` at its best settings, which against_reference.py times ours against.

bf16 where the machine multiplies it, batches of similar length, padded to multiples of eight,
fused AdamW, the attention that is quicker on this machine's training steps (eager on a CPU), no
evaluation, no logs, no checkpoints. Rows, batch size, rates and what is trained are ours. Steps are
those of the dense network: a pruned one takes as long. All of ISP is our own callback in it.

Run in a prepared folder (common.prepare); prints one JSON line.
"""

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import reference_style
import torch
from common import WARM_UP
from torch.utils.data import Dataset

from instant_soup.files import read_yaml
from instant_soup.library.trainer import InstantSoupCallback
from instant_soup.pipeline.plan import Params, check
from instant_soup.training import loop
from instant_soup.training.schedule import steps_of

# After our own callback, which makes them importable (models/torchvision_cpu.py).
from transformers import (  # isort: skip
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Rows(Dataset):
    """An encoded split's rows, as lists that a collator pads."""

    def __init__(self, folder: Path, split: str = "train") -> None:
        encoded = reference_style.Rows(folder, split)
        self.ids = [
            ids[:length].tolist()
            for ids, length in zip(encoded.ids, encoded.lengths.tolist(), strict=True)
        ]
        self.labels = encoded.labels.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def trainer_of(folder: Path, params: Params, steps: int, *callbacks: TrainerCallback) -> Trainer:
    """A Trainer of the prepared folder's classifier."""
    training, where = params.training, loop.device()
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, report_to="none", save_strategy="no",
        per_device_train_batch_size=training.batch_size, learning_rate=training.learning_rate,
        weight_decay=training.weight_decay, max_grad_norm=training.clip_norm,
        optim="adamw_torch_fused", train_sampling_strategy="group_by_length",
        bf16=loop.resolve_precision("auto") == "bf16", logging_strategy="no", disable_tqdm=True,
        use_cpu=where.type == "cpu", dataloader_pin_memory=where.type == "cuda", seed=0,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/base", local_files_only=True)
    return Trainer(
        model=reference_style.build(folder, training), args=arguments, train_dataset=Rows(folder),
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        callbacks=list(callbacks),
    )  # fmt: skip


def steps(folder: Path, count: int) -> float:
    """Mean wall seconds of a training step, after a few that do not count."""
    params, clock = check(read_yaml(folder / "params.yaml")), Clock()
    trainer_of(folder, params, WARM_UP + count, clock).train()
    ends = clock.ends[WARM_UP - 1 :]
    return statistics.mean(later - earlier for earlier, later in itertools.pairwise(ends))


def whole_isp(folder: Path) -> dict[str, float]:
    """All of ISP by our callback: wall seconds from reading the data to the end of training.

    Then, not timed, what came out: test accuracy and sparsity.
    """
    params = check(read_yaml(folder / "params.yaml"))
    isp, sparsity = params.isp, params.top.sparsity
    started = time.perf_counter()
    a_epoch = len(Rows(folder)) // params.training.batch_size
    total = steps_of(params.training.epochs, a_epoch)
    soup = InstantSoupCallback(
        sparsity=sparsity, compression_rate=isp.compression_rate,
        mask_finding=isp.ends(sparsity, total, a_epoch)[-1] / total,
        denoisers=isp.denoisers, look_ahead=isp.look_ahead, combine=isp.combine,
        learning_rate_range=isp.learning_rate_range, weight_decay_range=isp.weight_decay_range,
    )  # fmt: skip
    run = trainer_of(folder, params, total, soup)
    run.train()
    wall = time.perf_counter() - started
    found = run.predict(Rows(folder, "test"))
    right = torch.tensor(found.predictions).argmax(-1) == torch.tensor(found.label_ids)
    assert soup.pruner is not None
    return {
        "seconds": wall,
        "steps": total,
        "search_steps": soup.cost.search_steps,
        "accuracy": right.float().mean().item(),
        "sparsity": soup.pruner.sparsity,
    }


if __name__ == "__main__":
    print(json.dumps(whole_isp(Path.cwd())))
