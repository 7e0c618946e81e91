"""Families of transformers beside BERT: what is prunable, what a step costs, how long texts are."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instant_soup.config.sections import Recipe
from instant_soup.errors import UserError
from instant_soup.models import base as models
from instant_soup.models import bert, causal, encoding, hugging_face, matrices
from instant_soup.models.forward import logits_of
from instant_soup.models.head import Head
from instant_soup.models.known import BaseModel
from instant_soup.pipeline.run import PipelineRun
from instant_soup.training.state import State, load_state, save_state

WIDTH = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SMALL = {"vocab_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 40, **WIDTH}
BEHIND = {**SMALL, "pad_token_id": 1}  # counts positions from behind the padding's
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**DECODER, "num_experts_per_tok": 2}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
TWO_SIDES = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {**SMALL, "num_hidden_layers": 4, "embedding_size": 16},
    "bart": {**TWO_SIDES, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
             "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 40,
             "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
             "forced_eos_token_id": 3},
    "camembert": BEHIND,
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "gpt2": GPT,
    "longformer": {**BEHIND, "attention_window": [8, 8]},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "mpnet": BEHIND,
    "qwen2": DECODER,
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 32},
    "squeezebert": {**SMALL, "embedding_size": 32},
    "t5": {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
           "decoder_start_token_id": 0, "eos_token_id": 3},
}  # fmt: skip


def checkpoint(kind: str, tiny_bert: Path, folder: Path, **changes: Any) -> BaseModel:
    """A tiny classifier of a family with random weights, and the tiny BERT's tokenizer beside."""
    auto = hugging_face.transformers_auto()
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**FAMILIES[kind], **changes})
    auto.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    hugging_face.load_tokenizer(tiny_bert).save_pretrained(folder)
    return BaseModel(kind, "bert", "local", path=str(folder))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def prepared(request, tiny_bert: Path, tmp_path_factory) -> tuple[str, Path, matrices.Weights]:
    """A family, its base folder, and what is prunable of it."""
    folder = tmp_path_factory.mktemp(request.param)
    model = checkpoint(request.param, tiny_bert, folder / "checkpoint")
    (folder / "base").mkdir()
    return request.param, folder / "base", bert.prepare_base(model, folder / "base")


def classifier(base: Path, outputs: int = 3) -> Any:
    """The classifier of a base folder, with a head drawn from a seed."""
    weights = bert.start_weights(base, Head(outputs=outputs, seed=1))
    return bert.classifier(base, weights, outputs=outputs)


def batch_of(rows: int, length: int) -> dict[str, torch.Tensor]:
    """A batch of random tokens without padding."""
    ids = torch.randint(5, 64, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 3  # which ends a text, as BART wants it
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_the_weights_of_a_familys_blocks_are_prunable(prepared) -> None:
    kind, base, found = prepared
    model = classifier(base)
    assert set(found) == set(matrices.prunable(model))
    share, largest = matrices.share_of(model, found)
    assert share > 0.97, (kind, largest)
    if kind in ("mixtral", "qwen2_moe"):
        assert any(weight.ndim == 3 for weight in found.values())
        assert not any("bias" in name or "embed" in name for name in found)


def test_flops_are_those_that_torch_counts(prepared) -> None:
    _, base, found = prepared
    model = classifier(base).eval()
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch does not count grouped products
    batch = batch_of(5, 16)
    inside, others = models.forward_flops(model, found, batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits_of(model, batch)
    assert inside + others == counter.get_total_flops()
    assert 0 < others < inside


def test_a_family_trains_and_its_state_is_kept(prepared, tmp_path: Path) -> None:
    """Tied weights among them, which safetensors refuses."""
    kind, base, found = prepared
    model = classifier(base)
    logits_of(model, batch_of(2, 8)).square().sum().backward()
    untrained = [name for name in found if not dict(model.named_parameters())[name].grad.any()]
    # Of the last layer's local attention Longformer's head sees nothing.
    assert len(untrained) <= (3 if kind == "longformer" else 0), untrained
    save_state(tmp_path / "state", State(dict(model.state_dict())))
    again = bert.classifier(base, load_state(tmp_path / "state").weights, outputs=3)
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in model.state_dict().items())


def test_texts_are_as_long_as_a_family_has_positions(prepared) -> None:
    kind, base, _ = prepared
    behind = kind in ("camembert", "longformer", "mpnet")
    most = encoding.longest(base, None)
    assert most > 10**6 if kind == "t5" else most == (38 if behind else 40)
    assert encoding.longest(base, 12) == 12
    with torch.no_grad():
        assert logits_of(classifier(base), batch_of(2, min(most, 48))).isfinite().all()


def test_shared_layers_count_as_often_as_they_run(tiny_bert: Path, tmp_path: Path) -> None:
    flops = []
    for layers in (1, 6):
        folder = tmp_path / str(layers)
        model = checkpoint("albert", tiny_bert, folder / "from", num_hidden_layers=layers)
        (folder / "base").mkdir()
        found = bert.prepare_base(model, folder / "base")
        flops.append(models.forward_flops(classifier(folder / "base"), found, batch_of(4, 8))[0])
    assert flops[1] == 6 * flops[0] > 0


# Decoders, and what batches of texts need


def test_a_decoder_without_a_padding_token_takes_its_tokenizers(
    tiny_bert: Path, tmp_path: Path, capsys
) -> None:
    model = checkpoint("qwen2", tiny_bert, tmp_path / "qwen2")
    bert.prepare_base(model, tmp_path)
    assert "no padding token in config.json: [PAD] is taken" in capsys.readouterr().out
    assert bert.configuration(tmp_path, 2).pad_token_id == 0


def test_a_decoder_without_any_padding_token_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    model = checkpoint("gpt2", tiny_bert, tmp_path)
    network, _ = bert.load_pretrained(model.path)
    tokenizer = SimpleNamespace(pad_token=None, pad_token_id=None, eos_token=None)
    with pytest.raises(UserError, match="no padding token, which batches of texts need; allowed"):
        bert.set_padding(network, tokenizer)


def test_a_tokenizer_of_another_model_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    model = checkpoint("gpt2", tiny_bert, tmp_path / "gpt2", vocab_size=6, eos_token_id=0)
    with pytest.raises(UserError, match=r"tokenizer gives the token \d+, its vocab_size is 6"):
        bert.prepare_base(model, tmp_path)


def test_too_small_a_share_of_the_blocks_is_refused() -> None:
    block = torch.nn.ModuleDict({"map": torch.nn.Linear(4, 4), "table": torch.nn.Embedding(9, 4)})
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([block, block])})
    with pytest.raises(UserError, match=r"own: 31% of the weights .*table\.weight is not.*90%"):
        matrices.checked_prunable("own", model)


# What is refused, or must not be lost


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, "depends on the padd"),
        ("fnet", SMALL, "depends on the padding behind it (fnet); allowed: a model that leaves"),
        (
            "luke",
            {**SMALL, "entity_vocab_size": 8, "entity_emb_size": 16},
            "prunable matrices take no part in a pass, first luke.encoder.layer.0.attention.self",
        ),
    ],
)
def test_a_classifier_that_padding_changes_or_parts_stay_out_of_is_refused(
    kind: str, settings: dict, words: str, tiny_bert: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(FAMILIES, kind, {"vocab_size": 64, **settings})
    model = checkpoint(kind, tiny_bert, tmp_path / "from")
    with pytest.raises(UserError, match=re.escape(words)):
        bert.prepare_base(model, tmp_path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", "sees the tokens that it is to predict (bert); allowed: a causal language model"),
        ("bart", "prunable matrices take no part in a pass, first model.decoder.layers.0.encoder_"),
    ],
)
def test_a_language_model_that_is_not_causal_or_not_whole_is_refused(
    kind: str, words: str, tiny_bert: Path, tmp_path: Path
) -> None:
    """An encoder with a head for masked tokens has all weights of a language model."""
    auto = hugging_face.transformers_auto()
    from transformers import AutoConfig

    torch.manual_seed(0)
    own = SMALL if kind == "bert" else FAMILIES[kind]
    config = AutoConfig.for_model(kind, **own)
    masked = kind == "bert"
    of = auto.AutoModelForMaskedLM if masked else auto.AutoModelForCausalLM
    of.from_config(config).save_pretrained(tmp_path / "from")
    hugging_face.load_tokenizer(tiny_bert).save_pretrained(tmp_path / "from")
    (tmp_path / "base").mkdir()
    model = BaseModel(kind, "causal", "local", path=str(tmp_path / "from"))
    with pytest.raises(UserError, match=re.escape(words)):
        causal.prepare_base(model, tmp_path / "base")


def test_a_pre_trained_head_goes_on(tiny_bert: Path, tmp_path: Path) -> None:
    """ModernBERT's, of masked tokens, is the trunk of its classifier's; that itself is new."""
    auto = hugging_face.transformers_auto()
    from transformers import AutoConfig

    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = AutoConfig.for_model("modernbert", **{**SMALL, **ends})
    network = auto.AutoModelForMaskedLM.from_config(config)
    network.save_pretrained(tmp_path / "from")
    hugging_face.load_tokenizer(tiny_bert).save_pretrained(tmp_path / "from")
    (tmp_path / "base").mkdir()
    model = BaseModel("own", "bert", "local", path=str(tmp_path / "from"))
    bert.prepare_base(model, tmp_path / "base")
    own = bert.read_weights(tmp_path / "base")
    assert torch.equal(own["head.dense.weight"], network.head.dense.weight)
    assert not any(name.startswith(("classifier", "decoder")) for name in own)
    assert classifier(tmp_path / "base").head.dense.weight.equal(own["head.dense.weight"])


def test_dropout_has_other_names_in_gpt2(tiny_bert: Path, tmp_path: Path) -> None:
    model = checkpoint("gpt2", tiny_bert, tmp_path / "from")
    bert.prepare_base(model, tmp_path)
    off = vars(bert.configuration(tmp_path, 2, 0.0))
    assert {n: v for n, v in off.items() if "drop" in n} == dict.fromkeys(
        ["resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"], 0.0
    )
    config = SimpleNamespace(token_dropout=True, hidden_dropout=0.1, rate=0.3)
    bert.set_dropout(config, 0.0)
    assert vars(config) == {"token_dropout": True, "hidden_dropout": 0.0, "rate": 0.3}


def test_the_second_text_of_a_pair_is_told_to_funnel(tiny_bert: Path, tmp_path: Path) -> None:
    """Its configuration does not say how many kinds of segments it has."""
    sizes = {"vocab_size": 64, "block_sizes": [1, 1], "d_model": 32, "n_head": 4,
                   "d_head": 8, "d_inner": 64, "num_decoder_layers": 1}  # fmt: skip
    from transformers import AutoConfig

    config = AutoConfig.for_model("funnel", **sizes)
    torch.manual_seed(0)
    auto = hugging_face.transformers_auto()
    model = auto.AutoModelForSequenceClassification.from_config(config).eval()
    batch = batch_of(1, 8)
    segments = {"token_type_ids": torch.tensor([[0] * 4 + [1] * 4])}
    with torch.no_grad():
        one, two = logits_of(model, batch), logits_of(model, batch | segments)
        wanted = model(**batch, **segments).logits
    assert torch.equal(two, wanted) and not torch.equal(one, two)


@pytest.mark.parametrize("settings", [None, {}, {"tokenizer_class": "BertTokenizer"}])
def test_a_tokenizer_is_that_of_its_file(
    settings: dict | None, tiny_bert: Path, tmp_path: Path
) -> None:
    """Where nothing says that it is cased, transformers would make a BERT's anew, without case."""
    from tokenizers import Tokenizer

    model = checkpoint("bart", tiny_bert, tmp_path / "from")
    folder = Path(model.path)
    for file in ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (folder / file).unlink(missing_ok=True)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    said = json.loads((folder / "tokenizer.json").read_text())
    said["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "lowercase": False,
                          "handle_chinese_chars": True, "strip_accents": False}  # fmt: skip
    said["model"]["vocab"] |= {"Café": 60, "The": 61, "the": 62}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = hugging_face.load_tokenizer(folder)
    found.save_pretrained(tmp_path / "base")
    saved = Tokenizer.from_file(str(tmp_path / "base/tokenizer.json"))
    for text in ("The Café", "the", ("The", "Café the")):
        wanted = raw.encode(*text if isinstance(text, tuple) else [text]).ids
        assert saved.encode(*text if isinstance(text, tuple) else [text]).ids == wanted
    assert found.pad_token_id == 0


def test_a_run_of_the_pipeline_knows_where_gpt2_has_its_inputs(
    tiny_bert: Path, tmp_path: Path, monkeypatch
) -> None:
    """N:M patterns lie along the inputs."""
    model = checkpoint("gpt2", tiny_bert, tmp_path / "from")
    bert.prepare_base(model, tmp_path)
    run = object.__new__(PipelineRun)
    run.state, run.recipe = State({}), Recipe()
    monkeypatch.setattr(PipelineRun, "network", lambda *_: classifier(tmp_path))
    assert set(run.inputs_at.values()) == {0}
    assert "transformer.h.0.mlp.c_fc.weight" in run.inputs_at
