"""Pre-training of a small Llama on English snippets: editorials, reviews of goods, tweets.

A stand-in for the checkpoints that no package ships: transformers' own architecture, with a
byte-level BPE tokenizer trained on the same texts. They come in the source distribution of the
packaged reviews; its movie reviews are left for fine-tuning and tests. Every batch is a function of
seed and step, as in training/loop.py.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from instant_soup.config.sections import Pretraining
from instant_soup.data.batches import Blocks, pack, training_batches
from instant_soup.data.reviews import OTHERS, read_rows
from instant_soup.files import read_json
from instant_soup.models import causal
from instant_soup.models.hugging_face import transformers_auto
from instant_soup.pipeline.tracking import StageRun
from instant_soup.pretraining.training import Curve, near_zero, recipe_of, train, write_curve
from instant_soup.training import loop, metrics
from instant_soup.training.checkpoints import Store

MODEL_CONFIG = Path(__file__).with_name("llama_snippets.json")
END = "<|endoftext|>"
HELD_OUT = 20  # of so many texts one is held out
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


def pretrain(folder: Path, settings: Pretraining, run: StageRun, store: Store) -> dict[str, float]:
    """Train tokenizer and model into a folder that AutoModelForCausalLM loads, with the curve.

    Returns the held-out perplexity, and the unigram model's. The curve's rows: step, train_loss
    (mean since the row before), near_zero and at times validation, the held-out perplexity. An
    equal call goes on from an interrupted one's checkpoint in the store to the same result.
    """
    model_config, where = read_json(MODEL_CONFIG), loop.device()
    to_learn, held_out = split(texts())
    vocabulary, length = model_config["vocab_size"], model_config["max_position_embeddings"]
    train_tokenizer(folder, to_learn, vocabulary)
    packed = [pack(folder / causal.TOKENIZER, part, length) for part in (to_learn, held_out)]
    blocks, validation = (Blocks(part.input_ids.to(where)) for part in packed)
    model = build(model_config, settings.seed)
    if where.type == "cpu":  # torch's fused attention is slow backward there
        model.set_attn_implementation("eager")

    def batches(first: int) -> Iterator[tuple[int, loop.Batch]]:
        yield from training_batches(blocks, recipe_of(settings), first, settings.steps)

    def loss(batch: loop.Batch) -> torch.Tensor:
        return loop.loss_of(loop.logits_of(model, batch), batch["labels"])

    def perplexity() -> float:
        precision = loop.resolve_precision(settings.precision)
        return metrics.score("perplexity", *loop.predict(model, validation, precision))

    def row(step: int, mean: float | None, validating: bool) -> dict[str, Any]:
        found = perplexity() if validating else None
        return dict(zip(COLUMNS, (step, mean, near_zero(model), found), strict=True))

    _, curve = train(
        model, ("pretraining lm", model_config), settings, run, store,
        batches=batches, loss=loss, row=row,
    )  # fmt: skip
    save_model(folder, model, curve)
    found = {
        "perplexity": perplexity(),
        "unigram_perplexity": unigram_perplexity(packed[0], packed[1], vocabulary),
    }
    print(f"held-out perplexity: {found['perplexity']:.1f}, of the tokens' frequencies alone: "
          f"{found['unigram_perplexity']:.1f}")  # fmt: skip
    return found


def save_model(folder: Path, model: Any, curve: Curve) -> None:
    """Write configuration, weights and curve beside the tokenizer."""
    own = {n: w.cpu() for n, w in model.state_dict().items() if n not in causal.tied(model)}
    save_file(own, folder / causal.WEIGHTS, metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_curve(folder, COLUMNS, curve)
