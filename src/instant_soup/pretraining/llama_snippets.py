"""Pre-training of a small Llama on English snippets: editorials, reviews of goods, tweets.

A stand-in for the checkpoints that no package ships: transformers' own architecture, with a
byte-level BPE tokenizer trained on the same texts. They come in the source distribution of the
packaged reviews; its movie reviews are left for fine-tuning and tests. Every batch is a function of
seed and step, as in training/loop.py.
"""

import csv
import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from instant_soup.config.sections import Pretraining, Recipe
from instant_soup.data.batches import Blocks, pack, training_batches
from instant_soup.data.reviews import OTHERS, read_rows
from instant_soup.files import read_json
from instant_soup.models import causal
from instant_soup.models.bert import transformers_auto
from instant_soup.models.matrices import NEAR_ZERO, prunable
from instant_soup.pipeline.tracking import StageRun
from instant_soup.training import checkpoints, loop, metrics
from instant_soup.training.cost import Cost
from instant_soup.training.state import State

MODEL_CONFIG = Path(__file__).with_name("llama_snippets.json")
END = "<|endoftext|>"
HELD_OUT = 20  # of so many texts one is held out
CLIP_NORM = 1.0
ROWS, EVALUATIONS = 50, 5  # rows of the curve, and how many of them are validated
COLUMNS = ("step", "train_loss", "near_zero", "validation")


def texts() -> list[str]:
    """The texts: sentences of one editorial or review together, tweets each by itself."""
    found = []
    for name in OTHERS:
        numbered = ((row[0].partition("_")[0], row[2].strip()) for row in read_rows(name))
        for _, sentences in itertools.groupby(numbered, key=lambda row: row[0]):
            found.append(" ".join(text for _, text in sentences))
    return found


def split(found: list[str]) -> tuple[list[str], list[str]]:
    """Texts to train on, and those that are held out: every HELD_OUT-th."""
    held_out = found[::HELD_OUT]
    return [text for i, text in enumerate(found) if i % HELD_OUT], held_out


def train_tokenizer(folder: Path, found: list[str], vocabulary: int) -> None:
    """Write a byte-level BPE tokenizer of some texts as transformers reads it."""
    transformers_auto()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(found, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    whole.save_pretrained(folder)


def build(model_config: dict[str, Any], seed: int) -> Any:
    """A Llama with random weights, which depend on `seed` alone."""
    auto = transformers_auto()
    from transformers.models.auto.configuration_auto import AutoConfig

    torch.manual_seed(seed)
    config = AutoConfig.for_model("llama", **model_config)
    return auto.AutoModelForCausalLM.from_config(config)


def unigram_perplexity(train: Blocks, held_out: Blocks, vocabulary: int) -> float:
    """The perplexity of the tokens' frequencies (each counted once more) on held-out blocks.

    Of all tokens but a block's first, as of any other model.
    """
    counts = torch.bincount(train.input_ids.flatten().long(), minlength=vocabulary) + 1.0
    surprises = -(counts / counts.sum()).log()[held_out.input_ids[:, 1:].long()]
    return metrics.scores("language", surprises.numpy(), np.empty(0))["perplexity"]


def near_zero(model: nn.Module) -> float:
    """Share of the prunable weights with |w| < NEAR_ZERO (paper, section 9)."""
    weights = list(prunable(model).values())
    return float(
        sum((w.abs() < NEAR_ZERO).sum() for w in weights) / sum(w.numel() for w in weights)
    )


def pretrain(folder: Path, settings: Pretraining, run: StageRun) -> dict[str, float]:
    """Train tokenizer and model into a folder that AutoModelForCausalLM loads, with the curve.

    Returns the held-out perplexity, and the unigram model's. The curve's rows: step, train_loss
    (mean since the row before), near_zero and at times validation, the held-out perplexity. An
    equal call goes on from an interrupted one's checkpoint to the same result.
    """
    model_config, where, total = read_json(MODEL_CONFIG), loop.device(), settings.steps
    recipe = Recipe.of_pretraining(settings, CLIP_NORM)
    train, held_out = split(texts())
    vocabulary, length = model_config["vocab_size"], model_config["max_position_embeddings"]
    train_tokenizer(folder, train, vocabulary)
    packed = [pack(folder / causal.TOKENIZER, part, length) for part in (train, held_out)]
    blocks, validation = (Blocks(part.input_ids.to(where)) for part in packed)
    model = build(model_config, settings.seed)
    if where.type == "cpu":  # torch's fused attention is slow backward there
        model.set_attn_implementation("eager")

    def batches(first: int) -> Iterator[tuple[int, loop.Batch]]:
        yield from training_batches(blocks, recipe, first, total)

    def loss(batch: loop.Batch) -> torch.Tensor:
        return loop.loss_of(loop.logits_of(model, batch), batch["labels"])

    def perplexity() -> float:
        precision = loop.resolve_precision(settings.precision)
        return metrics.score("perplexity", *loop.predict(model, validation, precision))

    def row(step: int, mean: float | None, validating: bool) -> dict[str, Any]:
        found = perplexity() if validating else None
        return dict(zip(COLUMNS, (step, mean, near_zero(model), found), strict=True))

    def show(row: dict[str, Any]) -> None:
        run.curve(**row)
        run.live()

    cost, store = Cost(), checkpoints.pipeline_store()
    with store.entry("pretraining lm", model_config, asdict(settings)) as entry:
        record = checkpoints.Record(
            entry, cost, last=total, keep=False, row_every=max(1, total // ROWS),
            validate_every=max(1, total // EVALUATIONS), row=row, show=show,
        )  # fmt: skip
        state = record.resume(State({}), "pre-training")
        if state.step > 0:
            model.load_state_dict(state.weights)
        model.to(where).train()
        with record.going():
            loop.take_steps(
                model, state, {}, batches(state.step), loss, None, recipe, cost,
                last=total, total=total, label="pre-training", after_step=record.after_step,
            )  # fmt: skip
        store.discard(entry)
    save_model(folder, model, record.curve)
    found = {
        "perplexity": perplexity(),
        "unigram_perplexity": unigram_perplexity(packed[0], packed[1], vocabulary),
    }
    print(f"held-out perplexity: {found['perplexity']:.1f}, of the tokens' frequencies alone: "
          f"{found['unigram_perplexity']:.1f}")  # fmt: skip
    return found


def save_model(folder: Path, model: Any, curve: list[dict[str, Any]]) -> None:
    """Write configuration, weights and curve beside the tokenizer."""
    own = {n: w.cpu() for n, w in model.state_dict().items() if n not in causal.tied(model)}
    save_file(own, folder / causal.WEIGHTS, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    with open(folder / "curve.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(curve)
