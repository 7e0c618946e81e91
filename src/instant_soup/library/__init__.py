"""Pruning of one's own model: in one call, in a loop of one's own, in a Trainer."""
