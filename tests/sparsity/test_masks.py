"""Masks: exactly k kept, ties by position, one global ranking, and files that cannot mislead."""

import json
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from helpers import SHAPES, joined, random_mask
from instant_soup.errors import UserError
from instant_soup.files import new_file, new_folder
from instant_soup.sparsity import masks, ranking
from instant_soup.sparsity.scores import magnitude

LAW = settings(deadline=None, max_examples=100)
TIED_SCORES = st.lists(st.integers(-2, 3).map(float), min_size=1, max_size=60)


def kept_by_stable_sort(scores: np.ndarray, k: int) -> np.ndarray:
    """The reference: a stable sort, best first; equal scores stay in their order."""
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[:k]] = True
    return kept


def in_pieces(flat: torch.Tensor, sizes: list[int]) -> dict[str, torch.Tensor]:
    """A vector cut into named tensors, in order."""
    return {f"w{i}": piece for i, piece in enumerate(flat.split(sizes))}


@LAW
@given(TIED_SCORES, st.data())
def test_exactly_k_are_kept_and_they_are_a_stable_sorts(scores: list[float], data) -> None:
    k = data.draw(st.integers(0, len(scores)))
    kept = masks.largest(torch.tensor(scores), k)
    assert int(kept.sum()) == k
    np.testing.assert_array_equal(kept.numpy(), kept_by_stable_sort(np.array(scores), k))


@pytest.mark.parametrize("k", [0, 1, 2, 5, 6])
def test_of_equal_scores_the_lower_index_is_kept(k: int) -> None:
    assert masks.largest(torch.zeros(6), k).tolist() == [True] * k + [False] * (6 - k)


def test_a_tie_at_the_threshold_is_cut_by_position() -> None:
    kept = masks.largest(torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0]), 3)
    assert kept.tolist() == [True, True, False, True, False]


def test_infinite_scores_have_their_place_in_the_order() -> None:
    kept = masks.largest(torch.tensor([0.0, -math.inf, math.inf, 5.0]), 2)
    assert kept.tolist() == [False, False, True, True]


@LAW
@given(TIED_SCORES, st.data())
def test_the_largest_among_some_are_those_of_the_others_left_out(scores: list[float], data) -> None:
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    kept = masks.largest(torch.tensor(scores), k, among=torch.tensor(among, dtype=torch.bool))
    expected = np.zeros(len(scores), dtype=bool)
    expected[among] = kept_by_stable_sort(np.array(scores)[among], k)
    np.testing.assert_array_equal(kept.numpy(), expected)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_nan_is_refused_whatever_k(k: int) -> None:
    with pytest.raises(UserError, match="NaN"):
        masks.largest(torch.tensor([0.0, math.nan, 1.0]), k)


def test_nan_is_refused_under_a_priority_too() -> None:
    scores = {"a": torch.tensor([1.0, math.nan])}
    with pytest.raises(UserError, match="NaN"):
        masks.keep_largest(scores, 1, {"a": torch.tensor([1, 0])})


@LAW
@given(TIED_SCORES, st.integers(1, 64), st.data())
def test_the_ranking_is_global_across_tensors(scores: list[float], sample: int, data) -> None:
    """Also where a sample, however small, misses the threshold."""
    cut = data.draw(st.integers(0, len(scores)))
    k = data.draw(st.integers(0, len(scores)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SAMPLE", sample)
        mask = masks.keep_largest(in_pieces(torch.tensor(scores), [cut, len(scores) - cut]), k)
    np.testing.assert_array_equal(joined(mask), kept_by_stable_sort(np.array(scores), k))


@pytest.mark.parametrize("sparsity", [0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("kind", ["normal", "pruned before", "in rising order", "few values"])
def test_of_many_scores_exactly_the_k_largest_are_kept(kind: str, sparsity: float) -> None:
    """Enough of them that the threshold is bracketed by a sample."""
    draws = torch.Generator().manual_seed(1)
    scores = torch.randn(3 * ranking.SAMPLE, generator=draws).abs()
    if kind == "pruned before":
        scores *= torch.rand(len(scores), generator=draws) < 0.3
    elif kind == "in rising order":
        scores = scores.sort().values
    elif kind == "few values":
        scores = (4 * scores).floor()
    k = masks.number_kept(len(scores), sparsity)
    mask = masks.keep_largest(in_pieces(scores, [ranking.SAMPLE // 2, 5 * ranking.SAMPLE // 2]), k)
    np.testing.assert_array_equal(joined(mask), kept_by_stable_sort(scores.numpy(), k))


def test_what_the_best_level_lacks_is_filled_up_from_the_next_among_many_scores() -> None:
    scores = torch.rand(4 * ranking.SAMPLE, generator=torch.Generator().manual_seed(1))
    first = torch.arange(len(scores)) < 2 * ranking.SAMPLE
    mask = masks.keep_largest({"w": scores}, 3 * ranking.SAMPLE, {"w": first})["w"]
    expected = scores[~first].topk(ranking.SAMPLE).indices
    assert mask[first].all() and mask.sum() == 3 * ranking.SAMPLE and mask[~first][expected].all()


def test_nan_is_found_among_many_scores() -> None:
    scores = torch.rand(2 * ranking.SAMPLE)
    scores[12345] = math.nan
    with pytest.raises(UserError, match="NaN"):
        masks.keep_largest({"w": scores}, ranking.SAMPLE)


def test_a_layer_of_small_weights_can_lose_everything() -> None:
    mask = masks.keep_largest({"small": torch.full((2, 2), 0.1), "big": torch.ones(2, 3)}, 6)
    assert not mask["small"].any() and mask["big"].all()
    assert mask["small"].shape == (2, 2) and mask["big"].shape == (2, 3)


@LAW
@given(TIED_SCORES, st.sampled_from([1, 7, ranking.SAMPLE]), st.data())
def test_priority_comes_before_score_and_score_before_position(scores, sample, data) -> None:
    size = len(scores)
    priority = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    k, cut = data.draw(st.integers(0, size)), data.draw(st.integers(0, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SAMPLE", sample)
        mask = masks.keep_largest(
            in_pieces(torch.tensor(scores), [cut, size - cut]),
            k,
            in_pieces(torch.tensor(priority, dtype=torch.uint8), [cut, size - cut]),
        )
    order = sorted(range(size), key=lambda i: (-priority[i], -scores[i], i))
    assert np.flatnonzero(joined(mask)).tolist() == sorted(order[:k])


@LAW
@given(TIED_SCORES, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_magnitude_masks_are_nested_over_sparsities(scores, one: float, other: float) -> None:
    weights = {"w": torch.tensor(scores)}
    dense = magnitude(weights, min(one, other))["w"]
    sparse = magnitude(weights, max(one, other))["w"]
    assert not (sparse & ~dense).any()


@LAW
@given(st.integers(1, 10**8), st.integers(1, 999))
def test_the_number_pruned_is_the_nearest_whole_number(total: int, thousandths: int) -> None:
    exact = Fraction(thousandths, 1000) * total
    # A float cannot hold most half-way cases: 0.145 · 100 falls just short of 14.5.
    assume(exact % 1 != Fraction(1, 2))
    assert total - masks.number_kept(total, thousandths / 1000) == round(exact)


@pytest.mark.parametrize(
    ("total", "sparsity", "pruned"), [(3, 0.5, 2), (5, 0.5, 3), (10, 0.25, 3), (6, 0.75, 5)]
)
def test_half_a_weight_is_rounded_up(total: int, sparsity: float, pruned: int) -> None:
    assert total - masks.number_kept(total, sparsity) == pruned


@LAW
@given(SHAPES, st.integers(1, 999))
def test_keep_count_is_over_all_tensors_together(shapes, thousandths: int) -> None:
    weights = {f"w{i}": torch.zeros(shape) for i, shape in enumerate(shapes)}
    total = sum(math.prod(shape) for shape in shapes)
    exact = Fraction(thousandths, 1000) * total
    assume(exact % 1 != Fraction(1, 2))
    assert masks.keep_count(weights, thousandths / 1000) == total - round(exact)


@LAW
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=8), st.integers(1, 999))
def test_shares_add_up_and_are_within_one_of_what_is_wanted(sizes, thousandths: int) -> None:
    """As the criteria have it: a density of each size, all together a rounded total."""
    density = thousandths / 1000
    wanted = {f"w{i}": density * size for i, size in enumerate(sizes)}
    exact = {f"w{i}": Fraction(thousandths, 1000) * size for i, size in enumerate(sizes)}
    total = masks.number_kept(sum(sizes), 1 - density)
    shares = masks.share_out(wanted, total)
    assert list(shares) == list(wanted)
    assert sum(shares.values()) == total
    for (name, share), size in zip(shares.items(), sizes, strict=True):
        assert abs(share - exact[name]) < 1 + Fraction(1, 10**6)
        assert 0 <= share <= size


@pytest.mark.parametrize(
    ("wanted", "total", "shares"),
    [
        ([1.5, 2.2, 3.3], 7, [2, 2, 3]),
        ([1.2, 2.7, 3.1], 7, [1, 3, 3]),
        ([0.5, 0.5, 1.0], 2, [1, 0, 1]),  # of equal fractions the first
        ([0.6, 0.7, 0.7], 2, [0, 1, 1]),
        ([2.0, 3.0], 5, [2, 3]),
        ([2.9999999999, 3.0000000001], 6, [3, 3]),
        ([0.4], 0, [0]),
        ([0.6], 1, [1]),
    ],
)
def test_the_largest_fractions_are_rounded_up(wanted: list, total: int, shares: list) -> None:
    found = masks.share_out({f"w{i}": value for i, value in enumerate(wanted)}, total)
    assert list(found.values()) == shares


def test_what_has_all_that_it_may_have_is_not_rounded_up() -> None:
    assert masks.share_out({"a": 2.0, "b": 1.0}, 4, {"a": 2, "b": 3}) == {"a": 2, "b": 2}


@LAW
@given(st.lists(TIED_SCORES, min_size=1, max_size=4), st.data())
def test_each_tensor_is_ranked_by_itself(scores: list[list[float]], data) -> None:
    kept = {f"w{i}": data.draw(st.integers(0, len(s))) for i, s in enumerate(scores)}
    mask = masks.keep_largest_each({f"w{i}": torch.tensor(s) for i, s in enumerate(scores)}, kept)
    assert list(mask) == list(kept)
    for (name, k), own in zip(kept.items(), scores, strict=True):
        expected = kept_by_stable_sort(np.array(own), k)
        np.testing.assert_array_equal(mask[name].numpy(), expected)


def test_tensors_ranked_by_themselves_keep_their_shapes() -> None:
    scores = {"a": torch.tensor([[1.0, 4.0], [3.0, 2.0]]), "b": torch.full((1, 3), 9.0)}
    mask = masks.keep_largest_each(scores, {"a": 2, "b": 1})
    assert mask["a"].tolist() == [[False, True], [True, False]]
    assert mask["b"].tolist() == [[True, False, False]]


def test_count_and_sparsity_of_a_known_mask() -> None:
    mask = {"a": torch.tensor([True, False]), "b": torch.tensor([[False, False]])}
    assert masks.count(mask) == (1, 4)
    assert masks.sparsity(mask) == 0.75
    assert masks.sparsity(masks.full(mask)) == 0


def test_apply_sets_exact_zeros_and_nothing_else() -> None:
    weights = {"a": torch.tensor([1.5, math.inf, math.nan, -2.0]), "bias": torch.ones(2)}
    masks.apply({"a": torch.tensor([True, False, False, True])}, weights)
    assert weights["a"].tolist() == [1.5, 0.0, 0.0, -2.0]
    assert weights["bias"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_applied_bits_are_those_of_masked_fill(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    values = torch.tensor([-0.0, -3.0, math.inf, -math.inf, math.nan, 1e-40, 7.0], dtype=dtype)
    wide = values[torch.randint(7, (40, 50), generator=draws)]
    for w in (wide.clone(), wide.clone().T, wide.clone()[::3, 1:]):  # two not contiguous
        kept = torch.rand(w.shape, generator=draws) < 0.5
        wanted = w.masked_fill(~kept, 0.0)
        masks.apply({"w": kept}, {"w": w})
        bits = masks.INTEGERS[dtype.itemsize]
        assert torch.equal(w.contiguous().view(bits), wanted.contiguous().view(bits))


def test_apply_works_on_live_parameters() -> None:
    layer = torch.nn.Linear(3, 2)
    masks.apply({"weight": torch.zeros(2, 3, dtype=torch.bool)}, dict(layer.named_parameters()))
    assert not layer.weight.any() and layer.weight.requires_grad


def test_cosine_similarity_of_known_masks() -> None:
    a = {"w": torch.tensor([True, True, True, True, False])}
    b = {"w": torch.tensor([False, False, False, True, False])}
    c = {"w": torch.tensor([False, False, False, False, True])}
    nothing = {"w": torch.zeros(5, dtype=torch.bool)}
    assert masks.cosine_similarity(a, a) == 1.0
    assert masks.cosine_similarity(a, b) == 0.5  # 1 / sqrt(4 · 1)
    assert masks.cosine_similarity(a, c) == 0.0
    assert masks.cosine_similarity(a, nothing) == 0.0


@LAW
@given(SHAPES, st.integers(0, 99), st.integers(0, 99))
def test_cosine_similarity_is_that_of_the_zero_one_vectors(shapes, one: int, other: int) -> None:
    a, b = random_mask(shapes, one), random_mask(shapes, other)
    x, y = joined(a).astype(float), joined(b).astype(float)
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    expected = x @ y / lengths if lengths else 0.0
    assert masks.cosine_similarity(a, b) == pytest.approx(expected)


def test_distance_of_known_masks() -> None:
    a = {"w": torch.tensor([True, True, False, False]), "v": torch.tensor([[True]])}
    b = {"w": torch.tensor([True, False, True, False]), "v": torch.tensor([[False]])}
    other = {name: ~kept for name, kept in a.items()}
    assert masks.distance(a, a) == 0.0
    assert masks.distance(a, b) == 3 / 5
    assert masks.distance(a, other) == 1.0


@LAW
@given(SHAPES, st.tuples(*[st.integers(0, 99)] * 3))
def test_distance_is_a_metric_and_that_of_the_zero_one_vectors(shapes, seeds) -> None:
    a, b, c = (random_mask(shapes, seed) for seed in seeds)
    differing = int((joined(a) != joined(b)).sum())
    assert masks.distance(a, b) == masks.distance(b, a) == differing / len(joined(a))
    assert (masks.distance(a, b) == 0) == np.array_equal(joined(a), joined(b))
    assert masks.distance(a, c) <= masks.distance(a, b) + masks.distance(b, c) + 1e-12


def test_sparsity_by_layer_groups_the_weights_of_a_block() -> None:
    mask = {
        "bert.encoder.layer.0.query.weight": torch.tensor([True, False]),
        "bert.encoder.layer.0.output.weight": torch.tensor([False, False]),
        "bert.encoder.layer.10.query.weight": torch.tensor([True, True]),
    }
    assert masks.sparsity_by_layer(mask) == [
        {"name": "bert.encoder.layer.0", "sparsity": 0.75},
        {"name": "bert.encoder.layer.10", "sparsity": 0.0},
    ]


@LAW
@given(SHAPES, st.integers(0, 99))
def test_a_mask_comes_back_from_disk_as_it_was(shapes: list[tuple[int, ...]], seed: int) -> None:
    mask = random_mask(shapes, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "mask.safetensors"
        masks.save(path, mask, method="isp", round=2)
        back = masks.load(path, {name: list(m.shape) for name, m in mask.items()})
        description = masks.describe(path)
    assert back.keys() == mask.keys()
    for name, kept in mask.items():
        assert back[name].dtype == torch.bool
        assert torch.equal(back[name], kept)
    assert description == {"sparsity": masks.sparsity(mask), "method": "isp", "round": 2}


def test_a_mask_takes_one_bit_a_weight_on_disk(tmp_path: Path) -> None:
    mask = random_mask([(384, 384), (1001, 333)], 0)
    masks.save(tmp_path / "mask.safetensors", mask)
    _, total = masks.count(mask)
    assert total / 8 <= (tmp_path / "mask.safetensors").stat().st_size <= total / 8 + 1000


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    """The writer's own order of the description differs from file to file."""
    mask, files = random_mask([(9, 5), (4,)], 0), []
    for number in range(12):
        masks.save(tmp_path / f"{number}", mask, method="isp", round=2, seed="ä")
        assert masks.describe(tmp_path / f"{number}")["seed"] == "ä"
        files.append((tmp_path / f"{number}").read_bytes())
    assert len(set(files)) == 1
    assert all(torch.equal(masks.load(tmp_path / "3")[n], kept) for n, kept in mask.items())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A mask file of two odd-sized tensors."""
    masks.save(tmp_path / "mask.safetensors", random_mask([(3, 7), (5,)], 1), method="isp")
    return tmp_path / "mask.safetensors"


def refusal(path: Path, shapes: dict[str, list[int]] | None = None) -> str:
    """The message with which a mask file is refused; it must name the file, in one line."""
    with pytest.raises(UserError) as caught:
        masks.load(path, shapes)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_a_missing_mask_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "mask.safetensors")


def test_a_folder_is_no_mask(tmp_path: Path) -> None:
    refusal(tmp_path)


def test_a_truncated_mask_is_refused_wherever_it_is_cut(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in (0, 4, 8, 100, len(whole) - 1):
        saved.write_bytes(whole[:size])
        refusal(saved)


def test_random_bytes_are_no_mask(saved: Path) -> None:
    saved.write_bytes(np.random.default_rng(0).bytes(1000))
    refusal(saved)


def test_the_note_of_an_idle_stage_is_no_mask(saved: Path) -> None:
    saved.write_text("not needed for this target\n")
    refusal(saved)


def test_a_plain_safetensors_file_is_no_mask(saved: Path) -> None:
    save_file({"w": np.zeros(3, dtype=np.uint8)}, saved)
    assert "not a mask" in refusal(saved)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"w": np.zeros(2, dtype=np.uint8)},
        {"w": np.zeros(4, dtype=np.uint8)},
        {"w": np.zeros(3, dtype=np.float32)},
        {"w": np.zeros((3, 1), dtype=np.uint8)},
    ],
    ids=["no tensor", "too short", "too long", "wrong type", "wrong rank"],
)
def test_a_header_that_does_not_fit_its_tensors_is_refused(saved: Path, tensors: dict) -> None:
    header = {"format": masks.FORMAT, "shapes": '{"w": [21]}', "description": "{}"}
    save_file({**tensors, "other": np.zeros(1)}, saved, metadata=header)
    assert "damaged mask (tensor w)" in refusal(saved)


def test_stray_padding_bits_are_refused(saved: Path) -> None:
    header = {"format": masks.FORMAT, "shapes": '{"w": [5]}', "description": "{}"}
    save_file({"w": np.array([0b11111_000], dtype=np.uint8)}, saved, metadata=header)
    assert masks.load(saved)["w"].all()
    save_file({"w": np.array([0b11111_001], dtype=np.uint8)}, saved, metadata=header)
    assert "stray bits" in refusal(saved)


def test_a_flipped_bit_is_refused_wherever_it_is(saved: Path) -> None:
    """In the header as in the body; but blanks that fill it up may be any."""
    mask, told, whole = masks.load(saved), masks.describe(saved), saved.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        saved.write_bytes(flipped)
        try:
            found, said = masks.load(saved), masks.describe(saved)
        except UserError as error:
            assert str(saved) in str(error)
            with pytest.raises(UserError):
                masks.describe(saved)
        else:  # the digest's own name: then nothing else has changed
            assert said == told and all(torch.equal(found[n], kept) for n, kept in mask.items())


def test_a_mask_of_before_has_no_digest_and_is_checked_by_its_count(saved: Path) -> None:
    mask = masks.load(saved)
    bits = {name: masks.pack(kept) for name, kept in mask.items()}
    told = {"sparsity": masks.sparsity(mask)}
    shapes = json.dumps({name: list(kept.shape) for name, kept in mask.items()})
    header = {"format": masks.FORMAT, "shapes": shapes, "description": json.dumps(told)}
    save_file(bits, saved, metadata=header)
    assert all(torch.equal(masks.load(saved)[name], kept) for name, kept in mask.items())
    assert masks.describe(saved) == told
    bits[next(iter(bits))][0] ^= 0b100
    save_file(bits, saved, metadata=header)
    assert "of 26 pruned" in refusal(saved)


@pytest.mark.parametrize(
    ("shapes", "description", "words"),
    [
        ('{"w": [-1, -8]}', "{}", "damaged mask"),
        ('{"w": [8]}', '{"sparsity": NaN}', "8 of 8 pruned, not nan"),
        ('{"w": [8]}', '{"sparsity": Infinity}', "8 of 8 pruned, not inf"),
        ('{"w": [0]}', "{}", "it has no weights"),
    ],
)
def test_a_crafted_header_is_refused_in_one_line(
    saved: Path, shapes: str, description: str, words: str
) -> None:
    bits = np.zeros(0 if "[0]" in shapes else 1, dtype=np.uint8)
    header = {"format": masks.FORMAT, "shapes": shapes, "description": description}
    save_file({"w": bits}, saved, metadata=header)
    assert words in refusal(saved)


@pytest.mark.parametrize("description", [None, "", "[1]", '{"sparsity": 0.5'])
def test_a_damaged_description_is_refused(saved: Path, description: str | None) -> None:
    header = {"format": masks.FORMAT, "shapes": '{"w": [8]}', "description": description}
    kept = {key: text for key, text in header.items() if text is not None}
    save_file({"w": np.zeros(1, dtype=np.uint8)}, saved, metadata=kept)
    with pytest.raises(UserError, match=r"damaged mask \(its description\)"):
        masks.describe(saved)
    for content in (b"", b"\0" * 100, saved.read_bytes()[:-1]):
        saved.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a mask"):
            masks.describe(saved)


def test_another_models_shapes_are_refused_and_the_difference_named(saved: Path) -> None:
    right = {"layer.0.w": [3, 7], "layer.1.w": [5]}
    masks.load(saved, right)
    assert "layer.1.w" in refusal(saved, {**right, "layer.1.w": [6]})
    assert "layer.0.w" in refusal(saved, {**right, "layer.0.w": [7, 3]})
    assert "layer.2.w" in refusal(saved, {**right, "layer.2.w": [1]})
    assert "layer.0.w" in refusal(saved, {"layer.1.w": [5]})


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), new_file(tmp_path / "mask") as unfinished:
        unfinished.write_text("half")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_the_old_file(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(KeyboardInterrupt), new_file(saved) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert saved.read_bytes() == before
    assert list(tmp_path.iterdir()) == [saved]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "state"
    with pytest.raises(RuntimeError), new_folder(target) as unfinished:
        (unfinished / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as unfinished:
        (unfinished / "a").write_text("old")
    with new_folder(target) as unfinished:
        assert list(unfinished.iterdir()) == []
        (unfinished / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"]
