"""The compact file: bit for bit what was saved, as small as promised, and never half read."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from instant_soup.errors import UserError
from instant_soup.sparsity import compact, masks, scores

LAW = settings(deadline=None, max_examples=60)
SHAPES = st.lists(
    st.lists(st.integers(1, 17), min_size=1, max_size=3).map(tuple), min_size=0, max_size=4
)
DTYPES = st.sampled_from(["fp32", "bf16"])
Weights = dict[str, torch.Tensor]


def pruned(shapes: list[tuple[int, ...]], density: float, seed: int) -> tuple[Weights, masks.Mask]:
    """Matrices of which a share is kept by chance, and tensors that are never pruned."""
    draws = torch.Generator().manual_seed(seed)
    weights = {f"layer.{i}.w": torch.randn(s, generator=draws) for i, s in enumerate(shapes)}
    mask = {n: torch.rand(w.shape, generator=draws) < density for n, w in weights.items()}
    masks.apply(mask, weights)
    weights["norm.bias"] = torch.randn(7, generator=draws)
    weights["positions"] = torch.arange(5)
    weights["scale"] = torch.tensor(2.5)
    return weights, mask


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_bits(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and tensor.shape == other[name].shape, name
        assert bits(tensor) == bits(other[name]), name


@LAW
@given(SHAPES, st.sampled_from([0.0, 0.1, 0.5, 1.0]), DTYPES, st.integers(0, 99))
def test_a_checkpoint_comes_back_bit_for_bit(shapes, density: float, dtype: str, seed: int) -> None:
    """Also with everything kept, or nothing, and with sizes that fill no last byte."""
    weights, mask = pruned(shapes, density, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "compact.safetensors"
        compact.save(path, weights, mask, dtype)
        back, back_mask = compact.load(path), compact.load_mask(path)
        assert_same_bits(back, compact.cast(weights, dtype))
    assert back_mask.keys() == mask.keys()
    assert all(torch.equal(back_mask[name], kept) for name, kept in mask.items())


@LAW
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.data())
def test_any_kept_value_survives(values: list[float], data) -> None:
    """Infinities, NaN, subnormals and signed zeros are values like others."""
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values),
                                           max_size=len(values))))  # fmt: skip
    weights = {"w": torch.tensor(values).masked_fill(~kept, 0.0)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compact.safetensors"
        compact.save(path, weights, {"w": kept})
        assert_same_bits(compact.load(path), weights)


@pytest.mark.parametrize("shape", [(256, 256), (333, 1001)])
@pytest.mark.parametrize(("dtype", "bytes_each"), [("bf16", 2), ("fp32", 4)])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.95])
def test_the_size_is_bits_and_kept_values(tmp_path, shape, dtype, bytes_each, sparsity) -> None:
    weights = {f"layer.{i}.w": torch.randn(shape) for i in range(3)}
    mask = scores.magnitude(weights, sparsity)
    masks.apply(mask, weights)
    compact.save(tmp_path / "c.safetensors", weights, mask, dtype)
    kept, total = masks.count(mask)
    size = (tmp_path / "c.safetensors").stat().st_size
    assert total / 8 + bytes_each * kept <= size <= total / 8 + bytes_each * kept + 1500


def test_at_80_percent_in_bf16_it_takes_at_most_0_30_of_the_dense_size(tmp_path: Path) -> None:
    weights = {f"layer.{i}.w": torch.randn(384, 384) for i in range(4)}
    mask = scores.magnitude(weights, 0.8)
    masks.apply(mask, weights)
    compact.save(tmp_path / "c.safetensors", weights, mask, "bf16")
    save_file(compact.cast(weights, "bf16"), tmp_path / "dense.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("c", "dense")]
    assert sizes[0] <= 0.30 * sizes[1]


def test_what_was_not_pruned_is_mapped_into_memory(tmp_path: Path) -> None:
    """And a change of it in memory does not reach the file."""
    path = tmp_path / "c.safetensors"
    compact.save(
        path, {"w": torch.zeros(8), "table": torch.ones(2000, 100)}, {"w": torch.ones(8) > 2}
    )
    table = compact.load(path)["table"]
    mapped = Path("/proc/self/maps")
    if mapped.exists():
        assert "c.safetensors" in mapped.read_text()
    table.zero_()
    assert compact.load(path)["table"].all()


def test_a_pruned_weight_that_is_not_zero_is_refused_and_nothing_written(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(3), "b": torch.tensor([1.0, 2.0])}
    mask = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True, False])}
    with pytest.raises(UserError, match="pruned weights of b are not zero"):
        compact.save(tmp_path / "c.safetensors", weights, mask)
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A compact file of two odd-sized matrices."""
    weights, mask = pruned([(3, 7), (5,)], 0.5, 1)
    compact.save(tmp_path / "c.safetensors", weights, mask)
    return tmp_path / "c.safetensors"


def refusal(path: Path) -> str:
    """The message with which a compact file is refused; it must name the file, in one line."""
    with pytest.raises(UserError) as caught:
        compact.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Replace or remove (None) tensors of a compact file; its header stays."""
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {n: file.get_tensor(n).clone() for n in file.keys()}  # noqa: SIM118
    tensors |= {name.replace("__", ":"): tensor for name, tensor in changes.items()}
    save_file({n: t for n, t in tensors.items() if t is not None}, path, metadata=header)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "c.safetensors")
    refusal(tmp_path)


def test_a_truncated_file_is_refused_wherever_it_is_cut(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        refusal(saved)


def test_random_bytes_are_refused(saved: Path) -> None:
    saved.write_bytes(np.random.default_rng(0).bytes(1000))
    refusal(saved)


def test_another_format_is_refused(saved: Path) -> None:
    masks.save(saved, {"w": torch.ones(3) > 0})
    assert "not a compact file" in refusal(saved)
    save_file({"w": torch.ones(3)}, saved)
    assert "not a compact file" in refusal(saved)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ("[1, 2]", "damaged"),
        ("no JSON", "damaged"),
        ('{"layer.0.w": [3, 8], "layer.1.w": [5]}', "values of layer.0.w"),
        ('{"layer.0.w": [30, 7], "layer.1.w": [5]}', "tensor layer.0.w"),
        ('{"layer.0.w": [3, 6], "layer.1.w": [5]}', "stray bits after layer.0.w"),
        ('{"layer.9.w": [3, 7]}', "layer.9.w"),
        ('{"layer.0.w": "x"}', "damaged"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(saved: Path, shapes: str, words: str) -> None:
    # Kept to the last, so that another shape shows in the bits.
    mask = {"layer.0.w": torch.ones(3, 7) > 0, "layer.1.w": torch.ones(5) > 0}
    tensors = {f"{n}:mask": torch.from_numpy(masks.pack(kept)) for n, kept in mask.items()}
    tensors |= {f"{n}:values": torch.ones(kept.numel()) for n, kept in mask.items()}
    if "[3, 8]" in shapes:
        tensors["layer.0.w:values"] = torch.ones(20)
    save_file(
        tensors, saved, metadata={"format": compact.FORMAT, "dtype": "fp32", "shapes": shapes}
    )
    assert words in refusal(saved)


def test_a_header_without_shapes_is_refused(saved: Path) -> None:
    save_file({"w": torch.ones(1)}, saved, metadata={"format": compact.FORMAT})
    assert "damaged compact file" in refusal(saved)


def test_values_that_do_not_fit_their_bits_are_refused(saved: Path) -> None:
    rewrite(saved, **{"layer.0.w__values": torch.ones(21)})
    assert "layer.0.w:values is not what was saved" in refusal(saved)
    rewrite(saved, **{"layer.0.w__values": None})
    assert "layer.0.w:values" in refusal(saved)


def test_a_flipped_bit_is_refused_wherever_it_is(saved: Path) -> None:
    """Or it is in what nobody reads: a key of the header, blanks."""
    weights, whole = compact.load(saved), saved.read_bytes()
    body = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(0, body, 3), *range(body, len(whole))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1
        saved.write_bytes(flipped)
        try:
            found = compact.load(saved)
        except UserError as error:
            assert str(saved) in str(error)
        else:
            assert place < body and found.keys() == weights.keys()
            assert all(torch.equal(found[name], w) for name, w in weights.items())


def test_a_file_of_before_has_no_digests_and_loads(saved: Path) -> None:
    weights = compact.load(saved)
    with safe_open(saved, framework="pt") as file:
        header, names = file.metadata(), list(file.keys())
        tensors = {name: file.get_tensor(name).clone() for name in names}
    del header["digests"]
    save_file(tensors, saved, metadata=header)
    found = compact.load(saved)
    assert all(torch.equal(found[name], w) for name, w in weights.items())
    tensors["layer.0.w:mask"][0] ^= 1
    save_file(tensors, saved, metadata=header)
    assert "values of layer.0.w" in refusal(saved)


def test_the_header_says_what_it_is(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        header = file.metadata()
    assert (header["format"], header["dtype"]) == ("instant-soup-compact-1", "fp32")
    assert json.loads(header["shapes"]) == {"layer.0.w": [3, 7], "layer.1.w": [5]}
    assert header["inputs_at"] == "{}"
    weights, mask = pruned([(3, 7)], 0.5, 0)
    weights["half"] = torch.ones(2).bfloat16()
    compact.save(saved, weights, mask, inputs_at={"layer.0.w": 0})
    with safe_open(saved, framework="pt") as file:
        header = file.metadata()
    assert header["dtype"] == "own" and json.loads(header["inputs_at"]) == {"layer.0.w": 0}


def test_weights_that_share_memory_are_kept_by_each_name(tmp_path: Path) -> None:
    weights, mask = pruned([(4, 4)], 0.5, 0)
    table = torch.randn(6, 3)
    weights |= {"tied": weights["norm.bias"], "table": table, "rows": table[1:4], "all": table[:]}
    compact.save(tmp_path / "compact.safetensors", weights, mask)
    assert_same_bits(compact.load(tmp_path / "compact.safetensors"), weights)
