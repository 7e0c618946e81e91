"""What inspect and compare count, against counts by hand; masks applied to others' checkpoints."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import BLOCKS, SHAPES, encoder_weights, joined, random_mask
from instant_soup.errors import UserError
from instant_soup.files import write_json
from instant_soup.methods.n_of_m import NOfM
from instant_soup.models import hugging_face, matrices
from instant_soup.models.ticket import write_ticket
from instant_soup.reports import figures
from instant_soup.sparsity import compact, masks, scores
from instant_soup.sparsity.names import in_block
from instant_soup.tickets import inspect, weights
from instant_soup.tickets.inspect import Inspected
from instant_soup.tickets.weights import apply

LAW = settings(deadline=None, max_examples=60)


def pruned(folder: Path, sparsity: float = 0.5) -> tuple[dict[str, torch.Tensor], masks.Mask]:
    """A pruned network and its mask, written as model.safetensors into a folder."""
    weights = encoder_weights()
    mask = scores.magnitude({name: weights[name] for name in BLOCKS}, sparsity)
    masks.apply(mask, weights)
    folder.mkdir(exist_ok=True, parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights, mask


# Statistics


def test_sparsity_is_counted_by_layer_type_and_matrix() -> None:
    kept = torch.zeros(8, 8, dtype=torch.bool)
    half = kept.clone()
    half[:4] = True
    query, output = (f"layer.{{}}.{part}.weight" for part in ("self.query", "output"))
    mask = {query.format(10): half, output.format(10): kept, query.format(2): ~kept}
    numbers = inspect.statistics(Inspected(mask))
    assert (numbers["weights"], numbers["kept"], numbers["sparsity"]) == (192, 96, 0.5)
    layers = {entry["name"]: entry["sparsity"] for entry in numbers["layers"]}
    assert list(layers.items()) == [("layer.2", 0.0), ("layer.10", 0.75)]
    types = {entry["name"]: entry["sparsity"] for entry in numbers["types"]}
    assert types == {"self.query": 0.25, "output": 1.0}
    assert [m["sparsity"] for m in numbers["matrices"]] == [0.5, 1.0, 0.0]
    assert "near_zero" not in numbers


@pytest.mark.parametrize(
    ("values", "index", "least"),
    [([1, 0, 0, 0], 0.75, 1), ([1, 1, 1, 1], 0, 4), ([4, -1, 0, 0], 0.55, 1.8)],
)
def test_the_pq_index_and_what_must_stay_by_it(values, index: float, least: float) -> None:
    inspected = Inspected({})
    for part in (0, 1):  # a matrix in two: sums of both are those of the whole
        name, w = f"layer.{part}.weight", torch.tensor([values[2 * part : 2 * part + 2]]).bfloat16()
        inspected.mask[name] = w != 0
        inspected.add(name, w, 1e-2)
    numbers = inspect.statistics(inspected)
    assert numbers["pq_index"] == pytest.approx(index)
    assert numbers["pq_least"] == pytest.approx(least)
    p, q, d, w = 0.5, 1, 4, torch.tensor(values).double().abs()
    norms = [float((w**k).sum()) ** (1 / k) for k in (p, q)]
    assert numbers["pq_index"] == pytest.approx(1 - d ** (1 / q - 1 / p) * norms[0] / norms[1])
    own = numbers["matrices"][1]["pq_index"]
    assert own is None if not any(values[2:]) else own == pytest.approx(0)


@LAW
@given(SHAPES, st.integers(0, 99))
def test_the_pq_index_knows_no_scale_and_lies_between_nothing_and_all(shapes, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    one, other = Inspected({}), Inspected({})
    for i, shape in enumerate(shapes):
        w = torch.randn(shape, generator=draws)
        for inspected, scale in ((one, 1.0), (other, 1e3)):
            inspected.mask[f"layer.{i}.weight"] = w != 0
            inspected.add(f"layer.{i}.weight", scale * w, 1e-2)
    found = [inspect.statistics(i)["pq_index"] for i in (one, other)]
    assert found[0] == pytest.approx(found[1], abs=1e-6) and -1e-9 <= found[0] < 1


@LAW
@given(SHAPES, st.integers(0, 99))
def test_parts_add_up_to_the_whole(shapes, seed: int) -> None:
    numbers = inspect.statistics(Inspected(random_mask(shapes, seed)))
    for parts in ("layers", "types", "matrices"):
        for key in ("weights", "kept"):
            assert sum(entry[key] for entry in numbers[parts]) == numbers[key]


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (1, 4)])
def test_an_n_of_m_mask_complies_with_its_pattern(n: int, m: int) -> None:
    weights = {f"layer.{i}.w": torch.randn(16, 32) for i in range(2)}
    run = SimpleNamespace(weights=weights, inputs_at={})
    mask = NOfM(m=m).mask(run, 1 - n / m)  # type: ignore[arg-type]
    found = {p["pattern"]: p for p in inspect.statistics(Inspected(mask))["patterns"]}
    assert found[f"{n}:{m}"] == {
        **{"pattern": f"{n}:{m}", "share": 1.0, "matrices": 2, "compliant": True}
    }
    # Whoever keeps 1:2 keeps 2:4, and so 4:8; a row of 1:4 keeps all three.
    order = ["1:4", "1:2", "2:4", "4:8"]
    assert all(found[p]["compliant"] for p in order[order.index(f"{n}:{m}") :])


def test_groups_lie_along_the_inputs() -> None:
    kept = torch.zeros(4, 8, dtype=torch.bool)
    kept[:, :2] = True  # two of the first four inputs, none of the others
    patterns = inspect.statistics(Inspected({"layer.0.w": kept}))["patterns"]
    shares = {entry["pattern"]: entry["share"] for entry in patterns}
    assert shares == {"1:2": 0.75, "2:4": 1.0, "4:8": 1.0, "1:4": 0.5}
    assert not inspect.statistics(Inspected({"layer.0.w": kept.T}))["patterns"][2]["compliant"]


def test_groups_lie_along_the_inputs_of_gpt2s_matrices_too(tmp_path: Path) -> None:
    """These are inputs × outputs: files of ours say so, and config.json of any checkpoint."""
    name = "h.0.attn.c_attn.weight"
    kept = torch.tensor([True, True, False, False])[:, None].expand(4, 12)
    weights, mask = {name: kept.float(), "ln_f.weight": torch.ones(4)}, {name: kept}
    longer = {f"transformer.{name}": kept}  # in a network with a head

    def compliant(path: Path) -> bool:
        pattern = inspect.statistics(inspect.read(path))["patterns"][1]
        return pattern["pattern"] == "2:4" and pattern["compliant"]

    write_ticket(tmp_path / "ours", weights, mask, {"method": "isp", "seed": 0}, {name: 0})
    assert compliant(tmp_path / "ours/mask.safetensors")
    assert compliant(tmp_path / "ours/compact.safetensors")
    save_file(weights, tmp_path / "ours/model.safetensors")
    assert compliant(tmp_path / "ours")
    masks.save(tmp_path / "ours/mask.safetensors", longer, inputs_at={f"transformer.{name}": 0})
    assert compliant(tmp_path / "ours")
    dense = tmp_path / "dense"
    dense.mkdir()
    save_file({name: torch.ones(4, 12)}, dense / "model.safetensors")
    apply(tmp_path / "ours", dense, tmp_path / "applied")
    assert compliant(tmp_path / "applied") and compliant(tmp_path / "applied/mask.safetensors")
    (tmp_path / "applied/mask.safetensors").unlink()
    assert not compliant(tmp_path / "applied")
    write_json(tmp_path / "applied/config.json", {"model_type": "gpt2"})
    assert compliant(tmp_path / "applied")


@pytest.mark.parametrize("kind", matrices.OF_CONV1D)
def test_matrices_of_a_type_are_inputs_by_outputs_as_transformers_builds_them(kind: str) -> None:
    hugging_face.transformers_auto()
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        network = AutoModel.from_config(AutoConfig.for_model(kind, n_layer=1))
    shapes = {name: list(w.shape) for name, w in network.named_parameters()}
    shapes = {name: shape for name, shape in shapes.items() if in_block(name, shape)}
    assert shapes and matrices.inputs_by_type({"model_type": kind}, shapes) == {
        name: at for name, at in matrices.inputs_at(network).items() if name in shapes
    }


def test_rows_that_are_no_multiple_of_m_do_not_comply() -> None:
    kept = torch.zeros(2, 6, dtype=torch.bool)
    numbers = inspect.statistics(Inspected({"layer.0.w": kept}))["patterns"]
    assert [entry["compliant"] for entry in numbers] == [True, False, False, False]
    assert [entry["share"] for entry in numbers] == [1.0, 1.0, None, 1.0]


# Reading


def test_a_checkpoints_mask_is_where_its_weights_are_not_zero(tmp_path: Path) -> None:
    _, mask = pruned(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = inspect.read(path)
        assert found.mask.keys() == mask.keys()
        assert all(torch.equal(found.mask[name], kept) for name, kept in mask.items())


def test_near_zero_weights_are_those_below_the_threshold_but_not_zero(tmp_path: Path) -> None:
    weights = torch.tensor([[0.0, 1e-4, -1e-4, 1e-3], [-2e-3, 0.5, 0.0, -9.9e-4]])
    save_file({"layer.0.w": weights}, tmp_path / "model.safetensors")
    near = [inspect.read(tmp_path, t).near_zero["layer.0.w"] for t in (1e-3, 1e-2, 1e-5)]
    assert near == [3, 5, 0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_compact_file_is_read_as_the_checkpoint_that_it_is(tmp_path: Path, dtype: str) -> None:
    weights, mask = pruned(tmp_path)
    dense = compact.cast(weights, dtype)
    save_file(dense, tmp_path / "model.safetensors")
    compact.save(tmp_path / "compact.safetensors", weights, mask, dtype)
    one = inspect.statistics(inspect.read(tmp_path, 0.8))
    other = inspect.statistics(inspect.read(tmp_path / "compact.safetensors", 0.8))
    one["matrices"].sort(key=lambda m: m["name"])
    other["matrices"].sort(key=lambda m: m["name"])
    assert one["matrices"] == other["matrices"] and one["near_zero"] > 0


def test_a_mask_beside_a_checkpoint_says_which_matrices_count(tmp_path: Path) -> None:
    _, mask = pruned(tmp_path)
    assert len(inspect.read(tmp_path).mask) == len(BLOCKS)
    few = {name: mask[name] for name in list(mask)[:2]}
    masks.save(tmp_path / "mask.safetensors", few)
    assert inspect.read(tmp_path).mask.keys() == few.keys()
    (tmp_path / "model.safetensors").unlink()
    found = inspect.read(tmp_path)
    assert found.mask.keys() == few.keys() and found.near_zero == {}


def test_a_sharded_checkpoint_is_read_whole(tmp_path: Path) -> None:
    weights, mask = pruned(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for number, part in enumerate((names[:4], names[4:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": index})
    found = inspect.read(tmp_path).mask
    assert all(torch.equal(found[name], kept) for name, kept in mask.items())


def test_weights_under_torchs_pruning_are_counted_as_the_products_that_they_are(
    tmp_path: Path,
) -> None:
    """Their halves are weight_orig and weight_mask; as masks they compare with any other."""
    _, mask = pruned(tmp_path / "plain", 0.8)
    halves = {}
    for name, w in encoder_weights().items():
        kept = mask.get(name)
        halves |= {name: w} if kept is None else {f"{name}_orig": w, f"{name}_mask": kept.float()}
    (tmp_path / "halves").mkdir()
    save_file(halves, tmp_path / "halves/model.safetensors")
    one, other = (inspect.read(tmp_path / name) for name in ("plain", "halves"))
    assert inspect.statistics(one) == inspect.statistics(other)
    assert inspect.compare(one.mask, other.mask)["hamming"] == 0
    masks.save(tmp_path / "halves/mask.safetensors", mask)  # one beside it fits, too
    assert inspect.statistics(inspect.read(tmp_path / "halves")) == inspect.statistics(one)


def test_a_mask_applied_to_weights_under_torchs_pruning_leaves_them_whole(tmp_path: Path) -> None:
    sparse, mask = pruned(tmp_path / "plain", 0.8)
    first, *_ = mask
    dense = encoder_weights()
    halves = {**dense, f"{first}_orig": dense[first], f"{first}_mask": torch.ones(8, 8)}
    del halves[first]
    save_file(halves, tmp_path / "halves.safetensors")
    masks.save(tmp_path / "mask.safetensors", mask)
    weights.apply(tmp_path / "mask.safetensors", tmp_path / "halves.safetensors", tmp_path / "out")
    after = load_file(tmp_path / "out/halves.safetensors")
    assert after.keys() == sparse.keys()
    assert all(torch.equal(after[name], w) for name, w in sparse.items())


@pytest.mark.parametrize("parts", [("w_v", "w_g"), ("parametrizations.w.original0",)])
def test_weights_that_are_made_of_parts_are_refused(tmp_path: Path, parts: tuple) -> None:
    shapes = {"w_v": (4, 4), "w_g": (4, 1), "parametrizations.w.original0": (4, 4)}
    tensors = {f"layer.0.{part}": torch.ones(shapes[part]) for part in parts}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "remove_parametrizations" in refusal(tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        ("q_proj.qweight", "q_proj.qzeros", "q_proj.scales"),  # GPTQ, AWQ
        ("q_proj.scales", "q_proj.qweight"),
        ("q_proj.weight_packed", "q_proj.weight_scale"),  # compressed-tensors
        ("q_proj.weight", "q_proj.weight.absmax"),  # bitsandbytes
        ("experts.down_proj_blocks", "experts.down_proj_scales"),  # MXFP4
    ],
)
def test_weights_of_which_several_are_in_one_number_are_refused(tmp_path: Path, parts) -> None:
    tensors = {f"model.layers.0.{part}": torch.ones(4, 4, dtype=torch.uint8) for part in parts}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "several in one number; allowed: one number for each weight" in refusal(tmp_path)


TYPES = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float16", "float64", "bfloat16"]


@pytest.mark.parametrize("dtype", [*TYPES, "int8", "uint8", "uint16", "int64", "bool", "complex64"])
def test_zeros_of_any_type_are_counted(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([[0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0]])
    stored = {"layer.0.w": values.to(getattr(torch, dtype)), "layer.0.w_scale": torch.ones(2, 1)}
    save_file(stored, tmp_path / "model.safetensors")
    found = inspect.read(tmp_path, 2.5)
    assert torch.equal(found.mask["layer.0.w"], values != 0) and len(found.mask) == 1
    assert found.near_zero == {"layer.0.w": 3}
    assert inspect.compare(found.mask, found.mask)["hamming"] == 0


def test_a_type_that_torch_cannot_read_as_numbers_is_refused(tmp_path: Path) -> None:
    packed = torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"layer.0.w": packed}, tmp_path / "model.safetensors")
    assert "layer.0.w: no numbers in torch.float4_e2m1fn_x2" in refusal(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "no weight_map" in refusal(tmp_path)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_inspected_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nothing")
    assert "which .safetensors file? It has none" in refusal(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    assert "cannot be read as safetensors" in refusal(tmp_path)
    torch.save({"layer.0.w": torch.ones(2, 2)}, tmp_path / "a.pt")
    assert "not one of torch.save" in refusal(tmp_path / "a.pt")
    save_file({"head.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    assert "no weight matrices of numbered blocks" in refusal(tmp_path)
    save_file({"layer.0.w": torch.ones(2, 2)}, tmp_path / "b.safetensors")
    assert "It has a.safetensors, b.safetensors; name one" in refusal(tmp_path)


# Comparison


def test_agreement_of_known_masks() -> None:
    a = {"layer.0.w": torch.tensor([True, True, True, True, False, False, False, False])}
    b = {"layer.0.w": torch.tensor([False, False, False, True, True, False, False, False])}
    numbers = inspect.compare(a, b)
    assert (numbers["kept"], numbers["both"], numbers["weights"]) == ([4, 2], 1, 8)
    assert numbers["overlap"] == 1 / 2 and numbers["jaccard"] == 1 / 5
    assert numbers["cosine"] == pytest.approx(1 / np.sqrt(8)) and numbers["hamming"] == 4 / 8


@LAW
@given(SHAPES, st.integers(0, 99), st.integers(0, 99))
def test_comparison_is_that_of_the_zero_one_vectors(shapes, one: int, other: int) -> None:
    a, b = random_mask(shapes, one), random_mask(shapes, other)
    numbers, x, y = inspect.compare(a, b), joined(a), joined(b)
    both, either = int((x & y).sum()), int((x | y).sum())
    assert numbers["hamming"] == (x != y).mean()
    if x.any() and y.any():
        assert numbers["jaccard"] == pytest.approx(both / either)
        assert numbers["overlap"] == both / min(x.sum(), y.sum())
        assert numbers["both"] == both
    else:
        assert numbers["jaccard"] is numbers["cosine"] is numbers["overlap"] is None
    assert sum(layer["both"] for layer in numbers["layers"]) == both
    assert inspect.compare(a, a)["hamming"] == 0


def test_nested_masks_overlap_fully_and_a_mask_of_nothing_has_no_overlap() -> None:
    dense = {"layer.0.w": torch.ones(6) > 0}
    sparse = {"layer.0.w": torch.tensor([True, False, False, False, False, True])}
    assert inspect.compare(dense, sparse)["overlap"] == 1.0
    nothing = inspect.compare(dense, {"layer.0.w": torch.zeros(6) > 0})
    assert nothing["overlap"] is None and nothing["hamming"] == 1.0


@pytest.mark.parametrize("other", [{"layer.1.w": (2, 3)}, {"layer.0.w": (3, 2)}, {}])
def test_masks_of_different_models_are_refused(other: dict) -> None:
    a = {"layer.0.w": torch.ones(2, 3) > 0}
    b = {name: torch.ones(shape) > 0 for name, shape in other.items()}
    for one, two in ((a, b), (b, a)):
        with pytest.raises(UserError, match=r"different models \(first difference: layer\.[01]\.w"):
            inspect.compare(one, two)


# Masks applied to checkpoints


def test_a_mask_makes_zeros_and_leaves_the_rest(tmp_path: Path, tiny_bert: Path) -> None:
    """Also in a checkpoint of the encoder alone, whose weights have shorter names."""
    before = load_file(tiny_bert / "model.safetensors")
    names = [name for name, w in before.items() if "layer" in name and w.ndim == 2]
    mask = scores.magnitude({f"bert.{name}": before[name] for name in names}, 0.6)
    masks.save(tmp_path / "mask.safetensors", mask)
    source = Path(shutil.copytree(tiny_bert, tmp_path / "source"))
    (source / "pytorch_model.bin").write_bytes(b"dense")
    own = weights.apply(tmp_path / "mask.safetensors", source, tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert set(own) == set(names) and after.keys() == before.keys()
    for name, w in before.items():
        kept = own.get(name, torch.ones(w.shape) > 0)
        assert torch.equal(after[name], torch.where(kept, w, 0.0))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    assert {"config.json", "tokenizer.json", "mask.safetensors"} <= files
    assert "pytorch_model.bin" not in files
    assert torch.equal(load_file(source / "model.safetensors")[names[0]], before[names[0]])
    assert inspect.statistics(inspect.read(tmp_path / "out"))["sparsity"] == (masks.sparsity(mask))
    from transformers import AutoModel

    _, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_all_that_lies_in_a_models_folder_comes_along_but_its_dense_weights(tmp_path: Path) -> None:
    """Pooling of sentence-transformers, a model's own code, a licence; links are followed."""
    _, mask = pruned(tmp_path / "sparse")
    masks.save(tmp_path / "mask.safetensors", mask)
    source = tmp_path / "source"
    source.mkdir()
    save_file(encoder_weights(), source / "model.safetensors", metadata={"format": "pt"})
    comes = [
        *("config.json", "modeling_own.py", "LICENSE", "README.md", "spiece.model"),
        *("1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"),
        *("onnx/config.json", "linked/deep/a.txt"),
    ]
    stays = [
        *("mask.safetensors", "model.gguf", "onnx/model.onnx", "openvino/openvino_model.bin"),
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "ticket.json"),
    ]
    for name in [*comes, *stays, ".git/objects/ab"]:
        real = tmp_path / "elsewhere" / name if name.startswith("linked") else source / name
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(name)
    (source / "linked").symlink_to(tmp_path / "elsewhere/linked")
    (source / "linked/deep/up").symlink_to(source)
    weights.apply(tmp_path / "mask.safetensors", source, tmp_path / "out")
    out = tmp_path / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {*comes, "model.safetensors", "mask.safetensors"}
    assert all((out / name).read_text() == name for name in comes)
    assert weights.left_out(source) == sorted(stays, key=lambda name: ("/" in name, name))
    assert weights.left_out(source / "model.safetensors") == []
    with pytest.raises(UserError, match="lies in"):
        weights.apply(tmp_path / "mask.safetensors", source, source / "pruned")
    assert not (source / "pruned").exists()


def test_masks_come_from_mask_files_compact_files_and_their_folders(tmp_path: Path) -> None:
    sparse, mask = pruned(tmp_path / "sparse")
    masks.save(tmp_path / "own/mask.safetensors", mask)
    compact.save(tmp_path / "compact.safetensors", sparse, mask)
    save_file(encoder_weights(), tmp_path / "dense.safetensors")
    for number, source in enumerate(["own", "own/mask.safetensors", "compact.safetensors"]):
        weights.apply(tmp_path / source, tmp_path / "dense.safetensors", tmp_path / f"{number}")
        after = load_file(tmp_path / f"{number}/dense.safetensors")
        assert all(torch.equal(after[name], w) for name, w in sparse.items())
        with safe_open(tmp_path / f"{number}/dense.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_what_does_not_go_together_is_refused_and_nothing_written(tmp_path: Path) -> None:
    _, mask = pruned(tmp_path / "sparse")
    masks.save(tmp_path / "mask.safetensors", mask)
    odd = {**encoder_weights(), "bert.encoder.layer.2.output.dense.weight": torch.ones(8, 9)}
    save_file(odd, tmp_path / "odd.safetensors")
    cases = [
        ("mask.safetensors", "odd.safetensors", "no weights bert.encoder.layer.2.output.dense"),
        ("mask.safetensors", "mask.safetensors", "not a checkpoint"),
        ("odd.safetensors", "sparse", "neither a mask nor a compact file"),
        ("nothing", "sparse", "no such file"),
        ("mask.safetensors", "nothing", "no such file"),
    ]
    for source, model, words in cases:
        with pytest.raises(UserError, match=words):
            weights.apply(tmp_path / source, tmp_path / model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Pictures and tables


def test_the_figure_has_a_field_for_each_matrix(tmp_path: Path) -> None:
    _, mask = pruned(tmp_path)
    numbers = inspect.statistics(Inspected(mask))
    figures.matrix_sparsity(numbers, tmp_path / "sparsity.png")
    assert Image.open(tmp_path / "sparsity.png").size[0] > 300
    again = tmp_path / "again.png"
    figures.matrix_sparsity(json.loads(json.dumps(numbers)), again)
    assert again.read_bytes() == (tmp_path / "sparsity.png").read_bytes()


def test_tables_say_what_was_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, mask = pruned(tmp_path)
    numbers = inspect.statistics(inspect.read(tmp_path, 0.7))
    inspect.show(numbers, "here", 0.7)
    text = capsys.readouterr().out
    assert "here: sparsity (%), layers of bert.encoder\n" in text
    assert "192 of 384 weights are zero" in text
    assert f"{numbers['near_zero']} more have |w| < 0.7" in text
    assert "2:4: " in text and "of 6 matrices throughout" in text
    rows = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    assert rows == ["layer.0", "layer.2", "layer.10", "all"]
    inspect.show_comparison(inspect.compare(mask, mask), "same")
    text = capsys.readouterr().out
    assert "same, layers of bert.encoder\n" in text and "│ layer.10 │  1.0000 │" in text


def test_towers_without_a_common_name_keep_theirs(capsys: pytest.CaptureFixture) -> None:
    mask = {f"{tower}.block.0.weight": torch.ones(2, 4, dtype=torch.bool) for tower in "ab"}
    inspect.show(inspect.statistics(Inspected(mask)), "here", 0.7)
    text = capsys.readouterr().out
    assert "here: sparsity (%)\n" in text and "│ a.block.0 │" in text and "│ b.block.0 │" in text
