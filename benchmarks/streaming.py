"""Memory and CPU time of pruning a language model without training, in memory and streamed.

A made-up Llama of 21 million weights in bf16 files (4 blocks of width 512) on made-up text. Beside
what is measured: what `oneshot` itself says that it takes, before it starts. A minute on one core.

    python benchmarks/streaming.py
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import record, run
from transformers import LlamaConfig, LlamaForCausalLM

from instant_soup.data.batches import pack
from instant_soup.library.block_by_block import LOOK_AT_INPUTS, METHODS, working_memory
from instant_soup.models import causal
from instant_soup.models.hugging_face import TOKENIZER
from instant_soup.pretraining import llama_snippets

LENGTH, BLOCKS = 256, 4  # tokens of a block, blocks of calibration text
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
NONE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
# Runs commands, each in a fork on one thread. The first one is run before, so that its libraries
# are in memory. Prints the largest resident bytes, those at the start, and CPU seconds.
FORKS = """
import contextlib, io, json, os, resource, sys
from pathlib import Path
from instant_soup import cli

def run(command):
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(command) == 0

first, *others = json.loads(sys.argv[1])
run(first)
for command in others:
    if not os.fork():
        begin = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        run(command)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime
        print(json.dumps([1024 * used.ru_maxrss, begin, seconds]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


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


def command(folder: Path, method: str, streamed: bool) -> list[str]:
    """The arguments of `instant-soup`."""
    found = ["oneshot", str(folder), f"local:{folder / 'texts'}", "--methods", method]
    found += ["--sparsities", "0.5", "--length", str(LENGTH), "--blocks", str(BLOCKS)]
    return [*found, *(["--stream"] if streamed else [])]


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
    methods = parser.parse_args().methods
    cases = [(method, streamed) for method in methods for streamed in (False, True)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        write_model(small, NONE)
        write_model(large, SHAPE)
        commands = [command(small, "sparsegpt", False), *(command(large, *case) for case in cases)]
        begin = ["env", "OMP_NUM_THREADS=1", sys.executable, "-c", FORKS]
        lines = run([*begin, json.dumps(commands)], large).splitlines()
        for (method, streamed), line in zip(cases, lines, strict=True):
            peak, before, seconds = json.loads(line)
            rows.append({
                "method": method, "how": "streamed" if streamed else "in memory",
                "peak_gib": peak / 2**30, "own_gib": (peak - before) / 2**30,
                "told_gib": told(large, method, streamed), "cpu_seconds": seconds,
            })  # fmt: skip
    record("streaming", rows, on_gpu=False)


if __name__ == "__main__":
    main()
