"""What training costs, in steps, FLOPs, seconds and memory (docs/method.md, Cost)."""

import platform
import resource
import sys
from dataclasses import asdict, dataclass, replace

import torch


@dataclass
class Cost:
    """The cost of a training, counted by the engine while it trains."""

    steps: int = 0  # of the run of T that made the network
    search_steps: int = 0  # all others: look-ahead, EarlyBird's search, IMP's earlier rounds
    flops: float = 0.0  # dense-equivalent training FLOPs, look-ahead included
    sparse_flops: float = 0.0  # the same without the pruned weights' multiply-adds
    seconds: float = 0.0  # wall seconds of training steps and mask work, validation excluded
    peak_memory: int = 0  # bytes: of the GPU where there is one, else the process's resident set

    def as_search(self) -> "Cost":
        """The same cost, with all of its steps as search steps."""
        return replace(self, steps=0, search_steps=self.steps + self.search_steps)

    def add(self, other: "Cost | dict") -> None:
        """Add another cost to this one; of the two peaks of memory the larger counts."""
        for name, value in (other if isinstance(other, dict) else asdict(other)).items():
            own = getattr(self, name)
            setattr(self, name, max(own, value) if name == "peak_memory" else own + value)

    def add_forward(self, in_prunable: float, elsewhere: float, kept: int, prunable: int) -> None:
        """Add the FLOPs of a forward pass: in matrices that keep some weights, and elsewhere."""
        self.flops += in_prunable + elsewhere
        self.sparse_flops += in_prunable * kept / prunable + elsewhere


def peak_memory() -> int:
    """The most memory, in bytes, that this process has used so far (see Cost)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def processor() -> str:
    """The kind of processor that trains here, as "AMD EPYC (AVX512, bf16)".

    Figures of one comparison are of one kind: another one rounds, and so learns, a bit otherwise.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    able = torch.cpu.get_capabilities()
    kinds = [torch.backends.cpu.get_cpu_capability()]
    kinds += ["bf16"] * bool(able.get("avx512_bf16")) + ["amx"] * bool(able.get("amx_bf16"))
    return f"{able.get('cpu_name') or platform.machine()} ({', '.join(kinds)})"
