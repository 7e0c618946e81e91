"""Prune your own model: in one call, in your own training loop, or in a Trainer."""
