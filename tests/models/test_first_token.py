"""In bf16 training the last block leaves out tokens that nobody reads; nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from instant_soup.models import bert, clip, first_token, hugging_face
from instant_soup.models.forward import forward_flops, logits_of
from instant_soup.models.head import Head

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
         "num_hidden_layers": 2, "max_position_embeddings": 40, "pad_token_id": 1}  # fmt: skip


def texts(kind: str, folder: Path, dropout: float = 0.0) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny classifier of texts, and a batch with padding."""
    auto = hugging_face.transformers_auto()
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, num_labels=3)
    config.save_pretrained(folder)
    weights = auto.AutoModelForSequenceClassification.from_config(config).state_dict()
    model = bert.classifier(folder, weights, outputs=3, dropout=dropout)
    model.set_attn_implementation("eager")
    ids = torch.randint(5, 64, (6, 8))
    seen = (torch.arange(8) < torch.tensor([8, 3, 5, 8, 2, 7])[:, None]).long()
    return model, {"input_ids": torch.where(seen > 0, ids, 1), "attention_mask": seen}


def images(folder: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny classifier of images, and a batch."""
    head = Head(classes=["a", "b"], templates=["the {}"])
    model = clip.classifier(folder, clip.start_weights(folder, head))
    return model, {"images": torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)}


def passed(model: Any, batch: dict[str, torch.Tensor], last: torch.nn.Module) -> tuple:
    """Logits, gradients by name, and how many rows the last block's activation saw."""
    seen: list[int] = []
    watch = last.register_forward_hook(lambda _, __, out: seen.append(out[..., 0].numel()))
    model.zero_grad()
    logits = logits_of(model, batch)
    logits.square().sum().backward()
    watch.remove()
    return logits, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, seen[0]


def compare(
    model: Any, batch: dict[str, torch.Tensor], last: torch.nn.Module, patch: pytest.MonkeyPatch
) -> None:
    """The same logits and gradients in fp32 arithmetic, with and without the other tokens."""
    model.train()
    logits, gradients, every = passed(model, batch, last)
    patch.setattr(first_token, "_in_bf16", lambda _: True)
    fewer_logits, fewer_gradients, first = passed(model, batch, last)
    assert first == 6 < every
    torch.testing.assert_close(fewer_logits, logits, rtol=1e-5, atol=1e-6)
    assert fewer_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fewer_gradients[name], gradient, rtol=1e-4, atol=1e-5)
    model.eval()  # whoever looks at a network at rest sees all tokens
    assert passed(model, batch, last)[2] == every


@pytest.mark.parametrize("kind", bert.BY_FIRST_TOKEN)
def test_texts_are_classified_by_the_first_token(kind: str, tmp_path: Path, monkeypatch) -> None:
    model, batch = texts(kind, tmp_path)
    compare(model, batch, model.base_model.encoder.layer[-1].intermediate, monkeypatch)


def test_images_are_classified_by_the_class_token(tiny_clip: Path, monkeypatch) -> None:
    model, batch = images(tiny_clip)
    compare(model, batch, model.visual.transformer.resblocks[-1].mlp.gelu, monkeypatch)


def test_only_bf16_training_without_dropout_does_so(tmp_path: Path) -> None:
    model, batch = texts("bert", tmp_path)
    last = model.base_model.encoder.layer[-1].intermediate
    assert passed(model.train(), batch, last)[2] == 48
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert passed(model, batch, last)[2] == 6
        model, batch = texts("bert", tmp_path, dropout=0.1)
        last = model.base_model.encoder.layer[-1].intermediate
        assert passed(model.train(), batch, last)[2] == 48


def test_what_a_pass_costs_is_counted_with_all_tokens(tmp_path: Path, monkeypatch) -> None:
    model, batch = texts("bert", tmp_path)
    prunable = {n: p for n, p in model.named_parameters() if p.ndim == 2 and ".layer." in n}
    monkeypatch.setattr(first_token, "_in_bf16", lambda _: True)
    inside, _ = forward_flops(model.train(), prunable, batch)
    assert inside == 2 * 48 * sum(p.numel() for p in prunable.values())
