"""`instant_soup.sparsity.masks` under the name that model cards and documents use."""

from instant_soup.sparsity.masks import *  # noqa: F403
