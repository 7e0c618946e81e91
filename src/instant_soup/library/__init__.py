"""Pruning of one's own model: `prune` over batches and a loss, and a callback of a Trainer."""
