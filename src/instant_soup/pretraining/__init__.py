"""A CLIP checkpoint of our own, pre-trained on rendered characters."""
