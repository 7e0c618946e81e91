"""Masks as pure tensors: top-k, files of bits, the mask soup, and the names of weights."""
