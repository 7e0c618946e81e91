"""Encoded data: tokenised or decoded once, held as tensors on the device, batched there.

Texts are batched by length; images are augmented in the batch, without a loop over samples; plain
text is packed into blocks of one length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from instant_soup.config.sections import Recipe, steps_per_epoch
from instant_soup.errors import UserError
from instant_soup.files import new_file
from instant_soup.seeds import generator

SORTED_BATCHES = 50  # batches that are sorted by length together
ROWS, TOKENS = 64, 2048  # of a batch in evaluation: of texts or images, of plain text


@dataclass
class Texts:
    """The rows of one split.

    `input_ids` and `token_type_ids` are rows × longest. Lengths are on the CPU, wherever the rest
    is, so a batch's width is known without waiting for a GPU. Row numbers (`index`) are on the CPU
    too.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch, cut to its longest row (rounded up to 8 tokens), with its attention mask."""
        lengths = self.lengths[index]
        longest = min(-(-int(lengths.max()) // 8) * 8, self.input_ids.shape[1])
        mask, where = (torch.arange(longest) < lengths[:, None]).long(), self.labels.device
        on_device = index.to(where, non_blocking=True)
        return {
            "input_ids": self.input_ids[on_device, :longest].long(),
            "token_type_ids": self.token_type_ids[on_device, :longest].long(),
            "attention_mask": mask.to(where, non_blocking=True),
            "labels": self.labels[on_device],
        }

    def subset(self, index: torch.Tensor) -> "Texts":
        """The rows of `index` as a split of their own."""
        return Texts(*(t[index] for t in vars(self).values()))


@dataclass
class Images:
    """Rows of one split: images (rows × 3 × side × side, uint8) and labels (class numbers)."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> torch.Tensor:
        """All images are of one size."""
        return torch.zeros(len(self), dtype=torch.int32)

    def rows(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch, as it is."""
        on_device = index.to(self.labels.device, non_blocking=True)
        return {"images": self.images[on_device], "labels": self.labels[on_device]}

    def subset(self, index: torch.Tensor) -> "Images":
        """The rows of `index` as a split of their own."""
        return Images(self.images[index], self.labels[index])


@dataclass
class Blocks:
    """Rows of one split of plain text: input_ids (rows × tokens), whole blocks without padding."""

    input_ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> torch.Tensor:
        """All blocks are of one length."""
        return torch.zeros(len(self), dtype=torch.int32)

    @property
    def labels(self) -> torch.Tensor:
        """The tokens themselves: at each place the next one is to be told."""
        return self.input_ids

    def rows(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch, as it is."""
        tokens = self.input_ids[index.to(self.input_ids.device, non_blocking=True)].long()
        return {"input_ids": tokens, "labels": tokens}

    def subset(self, index: torch.Tensor) -> "Blocks":
        """The rows of `index` as a split of their own."""
        return Blocks(self.input_ids[index])


Split = Texts | Images | Blocks


def to_device(split: Split, where: torch.device) -> Split:
    """A split with its tensors on a device; lengths stay on the CPU (see Texts)."""
    parts = vars(split).items()
    return type(split)(**{n: v if n == "lengths" else v.to(where) for n, v in parts})


def augment(images: torch.Tensor, crop: float, flip: bool, draws: torch.Generator) -> torch.Tensor:
    """Crop images at random, and mirror some of them.

    Each image is shifted by up to `crop` of its side in both directions, with its edges reflected:
    a random crop of the padded image. One gather does all of it, on the images' device.

    Args:
        images: Rows × 3 × side × side.
        crop: The largest shift, as a share of the side.
        flip: Whether to mirror.
        draws: The random generator.

    Returns:
        Images of the same shape.
    """
    rows, _, _, side = images.shape
    most = round(crop * side)
    shifts = torch.randint(-most, most + 1, (2, rows, 1), generator=draws)
    down, across = shifts + torch.arange(side)
    mirrored = torch.rand(rows, 1, generator=draws) < (0.5 if flip else 0.0)
    across = torch.where(mirrored, side - 1 - across, across)
    # Positions beyond an edge reflect at it.
    inside = (side - 1 - (side - 1 - torch.stack([down, across]).abs()).abs()).to(images.device)
    row = torch.arange(rows, device=images.device)[:, None, None, None]
    channel = torch.arange(3, device=images.device)[:, None, None]
    return images[row, channel, inside[0][:, None, :, None], inside[1][:, None, None, :]]


def encode(
    tokenizer_file: str | Path, texts: list[list[str]], labels: list, max_length: int, pad: int
) -> Texts:
    """Tokenise rows of one or two texts with a fast tokenizer's own special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    pairs = [tuple(row) if len(row) == 2 else row[0] for row in texts]
    encodings = tokenizer.encode_batch(pairs)
    lengths = torch.tensor([len(e.ids) for e in encodings], dtype=torch.int32)
    input_ids = torch.full((len(encodings), int(lengths.max())), pad, dtype=torch.int32)
    token_type_ids = torch.zeros(input_ids.shape, dtype=torch.uint8)
    for row, encoding in enumerate(encodings):
        input_ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids, dtype=torch.int32)
        token_type_ids[row, : len(encoding.ids)] = torch.tensor(encoding.type_ids)
    kind = torch.float32 if isinstance(labels[0], float) else torch.int64
    return Texts(input_ids, token_type_ids, lengths, torch.tensor(labels, dtype=kind))


def pack(
    tokenizer_file: str | Path,
    texts: list[str],
    length: int,
    setting: str = "data.max_length",
    what: str = "text",
) -> Blocks:
    """Texts as one, blank lines between them, tokenised and cut into blocks; the rest is left out.

    With the special tokens that the tokenizer itself puts around a text. So perplexities are those
    of the literature (Frantar & Alistarh 2023). UserError where there is not one block; it names
    the setting of the length, and what text it is.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = tokenizer.encode("\n\n".join(texts)).ids
    blocks = len(ids) // length
    if not blocks:
        raise UserError(
            f"{setting}: a block has {length} tokens, and the {what} only {len(ids)}; allowed: "
            "a smaller one, or more text"
        )
    return Blocks(torch.tensor(ids[: blocks * length], dtype=torch.int32).view(blocks, length))


def check_tokens(name: str, texts: Texts | Blocks, vocabulary: int | None) -> None:
    """UserError when texts have tokens that a model's vocabulary, where it has one, lacks."""
    largest = int(texts.input_ids.max())
    if vocabulary is not None and largest >= vocabulary:
        raise UserError(
            f"model: {name}: its tokenizer gives the token {largest}, its vocab_size is "
            f"{vocabulary}; allowed: a model's own tokenizer"
        )


def count_longer(tokenizer_file: str | Path, texts: list[list[str]], max_length: int) -> int:
    """How many rows of one or two texts have more tokens than `max_length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pairs = [tuple(row) if len(row) == 2 else row[0] for row in texts]
    return sum(len(encoding.ids) > max_length for encoding in tokenizer.encode_batch(pairs))


def save_split(path: str | Path, split: Split) -> None:
    """Write an encoded split as safetensors, atomically."""
    with new_file(path) as unfinished:
        save_file(vars(split), unfinished)


def load_split(path: str | Path, device: torch.device) -> Split:
    """Read an encoded split onto a device.

    Raises:
        UserError: If the file is missing or damaged.
    """
    try:
        tensors = load_file(path, device=str(device))
        if "images" in tensors:
            return Images(**tensors)
        if "lengths" not in tensors:
            return Blocks(**tensors)
        return Texts(**{**tensors, "lengths": tensors["lengths"].cpu()})
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as encoded data ({error})") from None


def epoch_batches(lengths: torch.Tensor, batch_size: int, *key: int) -> list[torch.Tensor]:
    """One epoch's batches: rows are shuffled, then grouped by similar length.

    Rows that do not fill a last batch wait for another epoch's shuffle.

    Args:
        lengths: Length of each row.
        batch_size: Rows in a batch.
        *key: Numbers that seed the shuffle; it depends on nothing else.

    Returns:
        Row numbers of each batch.
    """
    draws = generator(*key)
    order = torch.randperm(len(lengths), generator=draws)
    steps = steps_per_epoch(len(lengths), batch_size)
    order = order[: steps * batch_size]
    groups = order.split(SORTED_BATCHES * batch_size)
    batches = [b for g in groups for b in g[lengths[g].argsort(stable=True)].split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=draws)]


def training_batches(
    split: Split, recipe: Recipe, first: int, last: int
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Yield the batches of a run's one data order.

    Order and augmentation are functions of seed and step. So a run that stops and goes on sees the
    same batches as one that never stopped.

    Args:
        split: The encoded split.
        recipe: batch_size, seed and, for images, crop and flip (see `augment`) are used.
        first: The first step.
        last: The step after the last one.

    Yields:
        Step and batch.
    """
    batch_size, seed, crop = recipe.batch_size, recipe.seed, recipe.crop or 0.0
    augmented = isinstance(split, Images) and (crop > 0 or recipe.flip)
    steps = steps_per_epoch(len(split), batch_size)
    for step in range(first, last):
        if step == first or step % steps == 0:
            batches = epoch_batches(split.lengths, batch_size, seed, step // steps)
        batch = split.rows(batches[step % steps])
        if augmented:
            draws = generator(seed, step, 1)
            batch["images"] = augment(batch["images"], crop, recipe.flip, draws)
        yield step, batch


def evaluation_batches(split: Split) -> Iterator[torch.Tensor]:
    """Row numbers of all rows, shortest first, in batches."""
    rows = ROWS
    if isinstance(split, Blocks):  # whose outputs are as wide as the vocabulary
        rows = max(1, TOKENS // split.input_ids.shape[1])
    yield from split.lengths.argsort(stable=True).split(rows)
