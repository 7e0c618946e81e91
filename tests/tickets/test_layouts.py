"""Sparse layouts compute what the dense matrices with zeros compute."""

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import new_classifier
from instant_soup.errors import UserError
from instant_soup.models import clip, hugging_face, matrices
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


def test_a_t5_asks_its_sparse_layers_for_their_type() -> None:
    auto = hugging_face.transformers_auto()
    from transformers import T5Config

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    model = auto.AutoModelForSeq2SeqLM.from_config(T5Config(**sizes, vocab_size=20)).eval()
    names = [name for name, _ in model.named_parameters() if name.endswith("wo.weight")]
    ids = {"input_ids": torch.ones(1, 4).long(), "decoder_input_ids": torch.ones(1, 2).long()}
    with torch.inference_mode():
        found, expected = (one(**ids).logits for one in (layouts.convert(model, names), model))
    torch.testing.assert_close(found, expected)
    assert len(names) == 2


class Shifted(nn.Linear):
    """A linear layer that does more than that."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) + 1


def hooked(register: str) -> nn.Linear:
    layer = nn.Linear(4, 4)
    getattr(layer, register)(lambda module, *given: None)
    return layer


def replaced() -> nn.Linear:
    """A layer whose forward is another function, as accelerate's are."""
    layer = nn.Linear(4, 4)
    layer.forward = lambda inputs: inputs  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("layer", "name", "why"),
    [
        (Shifted(4, 4), "0.weight", "a Shifted with a forward of its own"),
        (replaced(), "0.weight", "a Linear with a forward of its own"),
        (hooked("register_forward_hook"), "0.weight", "it has forward hooks"),
        (hooked("register_forward_pre_hook"), "0.weight", "it has forward hooks"),
        (nn.Linear(4, 4, dtype=torch.bfloat16), "0.weight", "torch.bfloat16 on a CPU"),
        (nn.TransformerEncoderLayer(4, 2, 8), "0.linear1.weight", "multiplies its matrices itself"),
        (nn.MultiheadAttention(4, 2), "0.out_proj.weight", "multiplies its matrices itself"),
    ],
)
def test_a_layer_that_is_more_than_its_matrix_is_refused(layer, name: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: [^\n]*{why}[^\n]*; allowed: a plain nn.Linear"):
        layouts.convert(nn.Sequential(layer), [name])


def test_a_matrix_of_another_pattern_is_refused_for_2_4() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0]))
        model[0].weight[3, 1] = 1
    with pytest.raises(UserError, match=r"\(4 × 8\): 1 of 8 groups have more than 2 non-zero of 4"):
        layouts.convert(model, ["0.weight"], "2:4")
    with pytest.raises(UserError, match="its rows are no multiple of 4 long"):
        layouts.convert(nn.Sequential(nn.Linear(6, 4)), ["0.weight"], "2:4")


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
