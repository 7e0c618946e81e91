"""Pruning methods: one file for each, and the registry of them."""
