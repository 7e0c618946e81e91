"""Sparse layouts compute what the dense matrices with zeros compute."""

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import new_classifier
from instant_soup.errors import UserError
from instant_soup.models import clip, matrices
from instant_soup.sparsity import masks, scores
from instant_soup.tickets import layouts


@pytest.mark.parametrize("layout", ["CSR", "BSR"])
def test_a_sparse_copy_gives_the_same_logits(tiny_bert: Path, layout: str) -> None:
    model = new_classifier(tiny_bert, 2, 0).eval()
    mask = scores.magnitude(matrices.prunable(model), 0.8)
    masks.apply(mask, dict(model.named_parameters()))
    sparse = layouts.convert(model, mask, layout)
    ids = torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model(input_ids=ids).logits, sparse(input_ids=ids).logits
    torch.testing.assert_close(found, expected)
    kinds = [m for m in sparse.modules() if isinstance(m, layouts.SparseLinear)]
    assert len(kinds) == len(mask)
    kept = sum(m.sparse.values().count_nonzero().item() for m in kinds)
    assert kept == masks.count(mask)[0]
    assert all(type(m) is not layouts.SparseLinear for m in model.modules())


def test_the_mlps_of_an_image_tower_can_be_sparse(tiny_clip: Path) -> None:
    package = clip.open_clip()
    model, _, _ = package.create_model_and_transforms(f"local-dir:{tiny_clip}")
    names = [
        name for name in matrices.prunable(model.eval()) if "visual" in name and ".mlp." in name
    ]
    fast = layouts.convert(model, names)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(fast.encode_image(images), model.encode_image(images))
    assert len(names) == 4


def test_what_cannot_be_sparse_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.MultiheadAttention(4, 2))
    for name in ("1.weight", "2.in_proj_weight", "2.out_proj.weight"):
        with pytest.raises(UserError, match=name):
            layouts.convert(model, [name])
    with pytest.raises(UserError, match=r"^5\.weight: not the weight of a linear layer"):
        layouts.convert(model, ["5.weight"])
    for layout in ("BSR", "2:4"):
        line = rf"^layout: {layout} does not take 0\.weight \(4 × 4\): [^\n]+; allowed: CSR, or"
        with pytest.raises(UserError, match=line):
            layouts.convert(model, ["0.weight"], layout)
    with pytest.raises(UserError, match="allowed: CSR"):
        layouts.convert(model, ["0.weight"], "COO")
