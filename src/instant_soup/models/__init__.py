"""BERT and CLIP: loading, task heads, prunable matrices, and inputs as tensors."""
