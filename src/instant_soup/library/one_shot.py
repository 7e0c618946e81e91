"""A language model's perplexity after one-shot pruning, over sparsities, patterns and criteria.

Nothing is trained (Jaiswal et al. 2023, arXiv 2306.03805). All but one criterion go block by block
(block_by_block.py). Fisher scores need the gradient of the loss, and so the whole network.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from instant_soup.config.sections import Data
from instant_soup.data.batches import Blocks, check_tokens, pack
from instant_soup.data.datasets import Dataset
from instant_soup.data.local import from_here, resolve_data
from instant_soup.data.splits import read_train_and_test
from instant_soup.errors import UserError
from instant_soup.files import path_of, write_json
from instant_soup.library.block_by_block import (
    LOOK_AT_INPUTS,
    METHODS,
    Model,
    Written,
    check_pattern,
    matrices_of,
    run_blocks,
    working_memory,
)
from instant_soup.methods.n_of_m import largest_of_groups, pattern
from instant_soup.models import causal
from instant_soup.models.forward import logits_of
from instant_soup.models.hugging_face import TOKENIZER, downloaded, load_tokenizer, positions
from instant_soup.models.known import weight_files
from instant_soup.models.matrices import Weights, check_finite, prunable
from instant_soup.models.memory import check_fits, check_free
from instant_soup.models.ticket import FORMAT, TICKET
from instant_soup.sparsity import masks, scores
from instant_soup.sparsity.masks import Mask
from instant_soup.training.loop import loss_of, predict
from instant_soup.training.metrics import scores as metrics_of

WHOLE = ("fisher", "fisher-rows")  # criteria that need the whole network in memory
EVERY = (*METHODS, *WHOLE)
USUAL = ("magnitude", *LOOK_AT_INPUTS, "magnitude-global", "fisher")
SPARSITIES = [i / 10 for i in range(10)]
PATTERNS = ["1:2", "2:4", "4:8"]
CALIBRATION = 128  # blocks
LONGEST = 2048  # tokens of a block, where the model takes more
Wanted = list[tuple[float, int | None]]  # sparsities, and M where it is an N:M pattern's


def perplexities(
    model: str,
    dataset: str,
    methods: list[str],
    sparsities: list[float],
    patterns: list[str],
    *,
    column: str | None = None,
    length: int | None = None,
    blocks: int = CALIBRATION,
    streamed: bool = False,
    to: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Prune a model by each method to each sparsity and N:M pattern; measure what it then knows.

    All is checked before the first row.

    Args:
        model: A checkpoint's folder, or hub:ORG/NAME.
        dataset: Of plain text, as in params.yaml; calibration is of its training split.
        methods: Some of EVERY.
        sparsities: Shares of the prunable weights that go.
        patterns: "2:4" and the like.
        column: The column of texts, if its name cannot be guessed.
        length: Tokens of a block; None: as many as the model takes, up to LONGEST.
        blocks: Of calibration text.
        streamed: Whether weights of blocks are read from the files each time they are needed.
        to: A folder for the pruned model, of one method at one sparsity or pattern, and for the
            ticket.json that a test of it needs.

    Yields:
        For each: method, pattern (of a sparsity empty), sparsity as it is, perplexity.

    Raises:
        UserError: If something of this cannot be, before anything is pruned.
    """
    wanted = _wanted(methods, sparsities, patterns, streamed, to)
    folder, name = _folder_and_name(model)
    network = causal.as_linear(causal.skeleton(folder))
    matrices = prunable(network)
    if not matrices:
        raise UserError(f"model: {name} has nothing prunable (no blocks)")
    for _, m in wanted:
        check_pattern(matrices, m)
    text = _text(network, folder, dataset, column, length, blocks)
    by_blocks, whole = ([one for one in methods if one in known] for known in (METHODS, WHOLE))
    for method in by_blocks:
        check_memory(network, name, method, text, streamed)
    if whole:
        allowed = f"a smaller model, or {' | '.join(METHODS)}"
        check_fits(name, weight_files(folder), allowed=allowed)
        causal.check_files(folder)
    rows = itertools.chain(
        _by_blocks(folder, text, by_blocks, wanted, streamed, to),
        _by_whole(folder, text, whole, wanted, to),
    )
    for row in rows:
        if to is not None:
            write_json(to / TICKET, _ticket(name, text, row))
        yield row


def _wanted(
    methods: list[str],
    sparsities: list[float],
    patterns: list[str],
    streamed: bool,
    to: Path | None,
) -> Wanted:
    """What the arguments ask for; UserError where they do not go together."""
    for method in methods:
        if method not in EVERY:
            raise UserError(f"--methods: {method} is not allowed; allowed: {' | '.join(EVERY)}")
        if streamed and method in WHOLE:
            raise UserError(
                f"--stream: {method} needs the gradients of the whole model; allowed: "
                f"{' | '.join(METHODS)}"
            )
    for value in sparsities:
        if not 0 <= value < 1:
            raise UserError(f"--sparsities: {value:g} is not allowed; allowed: from 0, below 1")
    wanted: Wanted = [*((value, None) for value in sparsities), *map(_pattern, patterns)]
    if to is not None and (len(methods) != 1 or len(wanted) != 1):
        raise UserError(
            "--to: one model is written; allowed: one of --methods at one sparsity or pattern"
        )
    return wanted


def _folder_and_name(model: str) -> tuple[Path, str]:
    """Where a model's files are, and what it is called in params.yaml and in tables."""
    if model.startswith("hub:"):
        repository = model.removeprefix("hub:")
        return downloaded(repository), f"causal:{repository}"
    folder = path_of(model, "model")
    if not folder.is_dir():
        raise UserError(f"model: no folder {folder}; allowed: a model's folder | hub:ORG/NAME")
    return folder, f"causal:local:{folder.resolve().name}"


def _pattern(text: str) -> tuple[float, int]:
    """Sparsity and M of an N:M pattern; UserError for what is none."""
    n, _, m = text.partition(":")
    if not (n.isdigit() and m.isdigit() and 0 < int(n) < int(m)):
        raise UserError(f"--patterns: {text!r} is not allowed; allowed: N:M with N < M, as 2:4")
    return 1 - int(n) / int(m), int(m)


class Text(NamedTuple):
    """What a model is looked at on, and tested on."""

    data: Dataset
    calibration: Blocks
    test: Blocks


def _text(
    network: Any, folder: Path, dataset: str, column: str | None, length: int | None, blocks: int
) -> Text:
    """Calibration and test text, in blocks."""
    most = positions(network)
    length = min(most, LONGEST) if length is None else length
    if not 2 <= length <= most:
        raise UserError(f"--length: {length} is not allowed; allowed: from 2 to {most:,}")
    if blocks < 1:
        raise UserError(f"--blocks: {blocks} is not allowed; allowed: a whole number from 1")
    load_tokenizer(folder)  # which says what is wrong with it
    if not (folder / TOKENIZER).exists():  # made of other files, as older checkpoints have them
        raise UserError(
            f"model: {folder} has no {TOKENIZER}; allowed: a folder into which transformers has "
            "saved the tokenizer (save_pretrained)"
        )
    rows = Data(test_rows=2000, text=[column] if column else None)
    data = resolve_data(from_here(dataset), "causal", rows, model=str(folder))
    train, test = read_train_and_test(data)
    if not len(test):
        raise UserError(
            f"dataset: {dataset}: too few rows (paragraphs: blank lines end them) to cut a test "
            "split from; allowed: more, or files called train and test"
        )
    parts = []
    for name, table in (("training", train), ("test", test)):
        texts = table[data.text[0]].tolist()
        part = pack(folder / TOKENIZER, texts, length, "--length", f"{name} text")
        check_tokens(str(folder), part, network.config.get_text_config().vocab_size)
        parts.append(part)
    return Text(data, parts[0].subset(torch.arange(min(blocks, len(parts[0])))), parts[1])


def check_memory(network: Any, name: str, method: str, text: Text, streamed: bool) -> None:
    """UserError where a method by blocks takes more memory than is free, with what it takes."""
    used = (text.calibration, text.test) if method in LOOK_AT_INPUTS else (text.test,)
    tokens = sum(part.input_ids.numel() for part in used)
    wanted = working_memory(network, method, tokens, streamed)
    allowed = "a smaller model, fewer --blocks, or less test text"
    if not streamed:
        less = working_memory(network, method, tokens, streamed=True)
        allowed = f"--stream, which takes {less:,} | {allowed}"
    check_free(f"model: {name}: weights, texts and {method} take {wanted:,} bytes", wanted, allowed)


def _row(
    method: str, sparsity: float, m: int | None, reached: float, value: float
) -> dict[str, Any]:
    found = "" if m is None else f"{pattern(sparsity, m)}:{m}"
    return {"method": method, "pattern": found, "sparsity": reached, "perplexity": value}


def _ticket(name: str, text: Text, row: dict[str, Any]) -> dict[str, Any]:
    """What ticket.json says of a pruned model: where it is from, and what a test of it needs."""
    data, looked_at = text.data, row["method"] in (*LOOK_AT_INPUTS, *WHOLE)
    return {
        "format": FORMAT,
        **{"family": "causal", "model": name, "dataset": data.name, "precision": "fp32"},
        **{key: row[key] for key in ("method", "pattern", "sparsity")},
        "calibration_blocks": len(text.calibration) if looked_at else 0,
        **{"metric": data.metric, "test": {data.metric: row["perplexity"]}},
        **{"kind": data.kind, "label": data.label, "test_rows": data.test_rows},
        **{"columns": data.text, "classes": data.labels},
        "max_length": text.test.input_ids.shape[1],
    }


def _by_blocks(
    folder: Path, text: Text, methods: list[str], wanted: Wanted, streamed: bool, to: Path | None
) -> Iterator[dict[str, Any]]:
    """The rows of METHODS; one block at a time is pruned, and kept."""
    model = Model(folder, streamed) if methods else None
    for method, (sparsity, m) in itertools.product(methods, wanted):
        assert model is not None
        written = None if to is None else Written(model, to)
        reached, value = run_blocks(
            model, text.calibration, text.test, method if sparsity else "", sparsity, m, written
        )
        yield _row(method, sparsity, m, reached, value)


def _by_whole(
    folder: Path, text: Text, methods: list[str], wanted: Wanted, to: Path | None
) -> Iterator[dict[str, Any]]:
    """The rows of Fisher scores: those stay that cost the loss most, of all weights or of a row."""
    if not methods:
        return
    network = causal.load_pretrained(folder)
    weights = {name: w.detach() for name, w in prunable(network).items()}
    check_finite(folder.name, dict(network.named_parameters()))
    before = {name: w.clone() for name, w in weights.items()}
    worth = scores.fisher_scores(before, mean_squared_gradient(network, text.calibration))
    for method, (sparsity, m) in itertools.product(methods, wanted):
        mask = best_by_fisher(worth, method, sparsity, m)
        masks.apply(mask, weights)
        value = metrics_of(*predict(network, text.test, "fp32"))["perplexity"]
        if to is not None:
            written = Written(Model(folder, streamed=True), to)
            written.write_blocks(network)
            written.finish()
        yield _row(method, sparsity, m, masks.sparsity(mask), value)
        for name, w in weights.items():
            w.copy_(before[name])


def masks_of(
    folder: Path, dataset: str, methods: Sequence[str], sparsity: float, m: int | None = None
) -> dict[str, Mask]:
    """The masks of some of EVERY at one sparsity or N:M pattern, with the usual calibration text.

    A byte for each weight and method.
    """
    network = causal.as_linear(causal.skeleton(folder))
    _, calibration, test = _text(network, folder, dataset, None, None, CALIBRATION)
    found: dict[str, Mask] = {method: {} for method in methods}
    model, some = Model(folder), test.subset(torch.arange(1))  # whose perplexity nobody asks for
    for method in [one for one in methods if one in METHODS]:
        run_blocks(model, calibration, some, method, sparsity, m, mask=found[method])
    if whole := [one for one in methods if one in WHOLE]:
        network = causal.load_pretrained(folder)
        weights = {name: w.detach() for name, w in prunable(network).items()}
        worth = scores.fisher_scores(weights, mean_squared_gradient(network, calibration))
        found |= {method: best_by_fisher(worth, method, sparsity, m) for method in whole}
    return found


def best_by_fisher(worth: Weights, method: str, sparsity: float, m: int | None) -> Mask:
    """The mask of one of WHOLE at a sparsity or N:M pattern, by Fisher scores."""
    if m is not None:
        return largest_of_groups(worth, pattern(sparsity, m), m)
    return (best_of_rows if method == "fisher-rows" else scores.best)(worth, sparsity)


def best_of_rows(worth: Weights, sparsity: float) -> Mask:
    """The best weights of each row, of experts too."""
    own = {name: matrices_of(name, several) for name, several in worth.items()}
    mask = scores.best_of_rows({n: w for one in own.values() for n, w in one.items()}, sparsity)
    return {
        name: torch.stack([mask[n] for n in one]).view(worth[name].shape)
        for name, one in own.items()
    }


def mean_squared_gradient(network: nn.Module, text: Blocks) -> Weights:
    """The mean over blocks of the squared gradients of each block's loss, by prunable weight."""
    network.eval()
    every = prunable(network)
    total = {name: torch.zeros_like(w) for name, w in every.items()}
    for i in range(len(text)):
        batch = text.rows(torch.tensor([i]))
        loss = loss_of(logits_of(network, batch), batch["labels"])
        for name, g in zip(every, torch.autograd.grad(loss, list(every.values())), strict=True):
            total[name] += g.square()
    return {name: sum_ / len(text) for name, sum_ in total.items()}
