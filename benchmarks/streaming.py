"""Memory and CPU time of pruning a language model without training, in memory and streamed.

A made-up Llama of 34 million weights in bf16 files (8 blocks of width 512) on made-up text. Beside
what is measured: what `oneshot` itself says that it takes, before it starts. Some two minutes on
one core.

    python benchmarks/streaming.py
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import record, run
from memory import MEASURE
from transformers import LlamaConfig, LlamaForCausalLM

from instant_soup.data.batches import pack
from instant_soup.library.block_by_block import LOOK_AT_INPUTS, METHODS, working_memory
from instant_soup.models import causal
from instant_soup.models.bert import TOKENIZER
from instant_soup.pretraining import llama_snippets

LENGTH, BLOCKS = 256, 8  # tokens of a block, blocks of calibration text
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}
NONE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}  # Python and libraries


def write_model(folder: Path, shape: dict[str, Any]) -> None:
    """A Llama with random weights in bf16, in several files, with its tokenizer and some texts."""
    draws = torch.Generator().manual_seed(0)
    words = [f"w{i}" for i in torch.randint(4000, (20_000,), generator=draws).tolist()]
    llama_snippets.train_tokenizer(folder, [" ".join(words)], 8000)
    heads = shape["hidden_size"] // 32
    config = LlamaConfig(
        **shape, vocab_size=8000, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="20MB")
    texts = folder / "texts"
    texts.mkdir()
    for name in ("train", "test"):
        (texts / f"{name}.txt").write_text(" ".join(words[: LENGTH * BLOCKS]))


def measured(folder: Path, method: str, streamed: bool) -> tuple[float, float]:
    """GiB: the largest resident size of the command's process; and its CPU seconds."""
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "instant_soup.cli", "oneshot"]
    command += [str(folder), f"local:{folder / 'texts'}", "--methods", method]
    command += ["--sparsities", "0.5", "--length", str(LENGTH), "--blocks", str(BLOCKS)]
    peak, seconds = run([*command, *(["--stream"] if streamed else [])], folder).split()
    return int(peak) / 2**20, float(seconds)


def told(folder: Path, method: str, streamed: bool) -> float:
    """GiB: what the command says that it takes."""
    network = causal.as_linear(causal.skeleton(folder))
    text = (folder / "texts/test.txt").read_text()
    blocks = len(pack(folder / TOKENIZER, [text], LENGTH))
    blocks += BLOCKS if method in LOOK_AT_INPUTS else 0
    return working_memory(network, method, LENGTH * blocks, streamed) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:3])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        write_model(small, NONE)
        write_model(large, SHAPE)
        bare, start = measured(small, "magnitude", streamed=True)
        for method in parser.parse_args().methods:
            for streamed in (False, True):
                peak, seconds = measured(large, method, streamed)
                rows.append({
                    "method": method, "how": "streamed" if streamed else "in memory",
                    "peak_gib": peak, "own_gib": peak - bare,
                    "told_gib": told(large, method, streamed), "cpu_seconds": seconds - start,
                })  # fmt: skip
    record("streaming", rows, on_gpu=False)


if __name__ == "__main__":
    main()
