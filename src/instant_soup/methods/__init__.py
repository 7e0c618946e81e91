"""Pruning methods: each a file of its own with its settings, and one registration."""
