"""Instant Soup Pruning (ICML 2023): the ideas of the paper, one file per idea.

Nothing is imported here: the pipeline runs dozens of short processes, and each pays only for
what it uses.
"""
