"""What fits into memory: the bytes that are free, and those that a checkpoint takes."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from instant_soup.errors import UserError

if TYPE_CHECKING:
    import torch

WEIGHT, TRAINED = 4, 16  # bytes in fp32: a weight; with its gradient and two moments


def free_memory(where: "torch.device | None") -> int:
    """The bytes that can still be had on a device; None: in the machine's own memory."""
    if where is not None and where.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(where)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable"))
        return 1024 * int(line.split()[1])
    except (OSError, ValueError):  # no Linux: all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_fits(
    name: str, files: list[Path], each: int = TRAINED, allowed: str = "a smaller model"
) -> None:
    """UserError where `each` bytes for each weight of a checkpoint's files are more than are free.

    Files that cannot be read are left to whoever loads them.
    """
    count = 0
    try:
        for file in files:
            # For torch a whole file is mapped to be written, which fails of one above the memory.
            with safe_open(file, framework="numpy") as opened:
                shapes = (opened.get_slice(key).get_shape() for key in opened.keys())  # noqa: SIM118
                count += sum(map(math.prod, shapes))
    except (OSError, SafetensorError):
        return
    wanted = each * count
    told = f"model: {name}: {count:,} weights take {wanted:,} bytes, {each} for each"
    check_free(told, wanted, allowed)


def check_free(told: str, wanted: int, allowed: str, where: "torch.device | None" = None) -> None:
    """Check that bytes are free on a device; None: in the machine's own memory.

    Args:
        told: The parameter that asks for them, what for, and how many.
        wanted: The bytes.
        allowed: What to do where they are not free.
        where: The device.

    Raises:
        UserError: If they are not free.
    """
    if wanted > (free := free_memory(where)):
        here = "" if where is None else f" on the {where}"
        raise UserError(f"{told}, more than the {free:,} that are free{here}; allowed: {allowed}")
