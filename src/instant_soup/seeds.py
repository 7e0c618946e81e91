"""Random numbers that depend on a key, and on nothing else."""

import torch


def generator(*key: int) -> torch.Generator:
    """Make a random generator that depends on the key's numbers and on nothing else."""
    mixed = 0
    for number in key:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)
