"""The k-th largest of tensors that are seen one at a time, against a sort."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instant_soup.errors import UserError
from instant_soup.sparsity.by_parts import kth_largest

NUMBERS = st.floats(0, 2.0**100, width=32, allow_subnormal=False)


@given(st.lists(st.lists(NUMBERS, max_size=9), min_size=1, max_size=4), st.data())
def test_it_is_that_of_a_sort(lists: list[list[float]], data: st.DataObject) -> None:
    lists += [lists[0]]  # so that some are equal
    every = sorted((number for one in lists for number in one), reverse=True)
    k = data.draw(st.integers(0, len(every)))
    value, equal = kth_largest(lambda: map(torch.tensor, lists), k)
    if k:
        assert value == every[k - 1] and equal == k - sum(number > value for number in every)
    else:
        assert (value, equal) == (math.inf, 0)


def test_nan_has_no_place() -> None:
    with pytest.raises(UserError, match="scores: some are NaN"):
        kth_largest(lambda: [torch.tensor([1.0, math.nan])], 1)
