"""Checkpoints of our own: a CLIP of rendered characters, a Llama of English snippets."""
