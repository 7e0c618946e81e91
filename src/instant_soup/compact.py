"""`instant_soup.sparsity.compact` under the name that model cards and documents use."""

from instant_soup.sparsity.compact import *  # noqa: F403
