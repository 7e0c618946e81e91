"""Pruning methods: one file each, with its settings and one registration."""
