"""Datasets: their names and sources, their rows and splits, and batches of tensors."""
