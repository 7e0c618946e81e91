"""What tells one base model's weights from another's."""

import pytest
import torch

from helpers import encoder_weights
from instant_soup.models.base import digest


def test_equal_weights_alone_share_a_digest():
    weights = encoder_weights()
    copied = {name: weights[name].clone() for name in reversed(weights)}
    assert digest(weights) == digest(copied) and len(digest(weights)) == 8
    name = next(iter(weights))
    copied[name][-1, -1] += 1e-6
    assert digest(weights) != digest(copied)


@pytest.mark.parametrize("change", [torch.Tensor.bfloat16, lambda w: w.view(4, 16), torch.neg])
def test_data_types_shapes_and_signs_count(change):
    weights = {"weight": torch.arange(64.0).view(8, 8)}
    assert digest(weights) != digest({"weight": change(weights["weight"])})
    assert digest(weights) != digest({"other": weights["weight"]})
