"""Masks as pure tensors: top-k, files of bits, compact files, the mask soup, names of weights."""
