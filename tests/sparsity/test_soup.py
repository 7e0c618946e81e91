"""The mask soup's laws: what union, intersection, vote and the adjustment must always do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instant_soup.sparsity import mask_soup, masks
from instant_soup.sparsity.masks import Mask

LAW = settings(deadline=None, max_examples=100)
WAYS = ("union", "intersection", "vote")


def bits(*rows: str) -> list[Mask]:
    """Masks over two tensors (a, 2 × 2; b, the rest), written as strings of 0 and 1."""
    flat = [torch.tensor([c == "1" for c in row]) for row in rows]
    return [{"a": f[:4].view(2, 2), "b": f[4:]} for f in flat]


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """All of a mask's (or the weights') entries as one vector."""
    return torch.cat([t.flatten() for t in tensors.values()])


def test_more_masks_than_a_byte_counts_vote_too():
    (mask,) = bits("11001")
    many = [mask] * 256
    assert all(torch.equal(t, 256 * mask[n]) for n, t in mask_soup.votes(many).items())
    for how in WAYS:
        standing = mask_soup.combine(many, how)
        weights = {n: torch.arange(k.numel()).view(k.shape) + 1.0 for n, k in mask.items()}
        assert all(
            torch.equal(kept, mask[n]) for n, kept in mask_soup.adjust(standing, weights, 3).items()
        )
    assert mask_soup.agreement(many)["agreement"] == 1


@st.composite
def soups(draw) -> tuple[list[Mask], dict[str, torch.Tensor], int]:
    """Weak masks that keep k weights each, of weights with many ties, and k."""
    size = draw(st.integers(5, 40))
    values = draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
    k = draw(st.integers(1, size))
    weights = {
        "a": torch.tensor(values[:4], dtype=torch.float32).view(2, 2),
        "b": torch.tensor(values[4:], dtype=torch.float32),
    }
    weak = []
    for _ in range(draw(st.integers(1, 5))):
        seed = draw(st.integers(0, 9999))
        draws = torch.Generator().manual_seed(seed)
        scores = {n: torch.rand(w.shape, generator=draws) for n, w in weights.items()}
        weak.append(masks.keep_largest(scores, k))
    return weak, weights, k


def magnitude_mask(weights: dict[str, torch.Tensor], k: int) -> Mask:
    """The network's own mask."""
    return masks.keep_largest({n: w.abs() for n, w in weights.items()}, k)


def test_votes_are_counted_weight_by_weight() -> None:
    tally = mask_soup.votes(bits("110000", "101001", "100001"))
    assert tally["a"].tolist() == [[3, 1], [1, 0]]
    assert tally["b"].tolist() == [0, 2]


def test_combine_gives_each_weight_its_standing() -> None:
    weak = bits("110000", "101001", "100001")
    assert flat(mask_soup.combine(weak, "union")).tolist() == [1, 1, 1, 0, 0, 1]
    assert flat(mask_soup.combine(weak, "intersection")).tolist() == [1, 0, 0, 0, 0, 0]
    assert flat(mask_soup.combine(weak, "vote")).tolist() == [3, 1, 1, 0, 0, 2]


def test_an_unknown_way_to_combine_is_an_error() -> None:
    with pytest.raises(KeyError):
        mask_soup.combine(bits("110000"), "average")


@LAW
@given(soups())
def test_the_intersection_is_in_each_mask_and_each_mask_in_the_union(drawn) -> None:
    weak, _, _ = drawn
    union = flat(mask_soup.combine(weak, "union")).bool()
    common = flat(mask_soup.combine(weak, "intersection")).bool()
    for mask in weak:
        assert not (common & ~flat(mask)).any()
        assert not (flat(mask) & ~union).any()
    assert torch.equal(union, torch.stack([flat(m) for m in weak]).any(0))
    assert torch.equal(common, torch.stack([flat(m) for m in weak]).all(0))


@LAW
@given(soups(), st.sampled_from(WAYS))
def test_the_adjusted_soup_keeps_exactly_k(drawn, how: str) -> None:
    weak, weights, k = drawn
    adjusted = mask_soup.adjust(mask_soup.combine(weak, how), weights, k)
    assert masks.count(adjusted)[0] == k
    assert {n: m.shape for n, m in adjusted.items()} == {n: w.shape for n, w in weights.items()}


@LAW
@given(soups())
def test_the_adjusted_union_takes_nothing_from_outside_the_union(drawn) -> None:
    weak, weights, k = drawn
    adjusted = flat(mask_soup.adjust(mask_soup.combine(weak, "union"), weights, k))
    assert not (adjusted & ~flat(mask_soup.combine(weak, "union")).bool()).any()


@LAW
@given(soups())
def test_the_adjusted_intersection_gives_nothing_of_the_intersection_up(drawn) -> None:
    weak, weights, k = drawn
    common = flat(mask_soup.combine(weak, "intersection")).bool()
    adjusted = flat(mask_soup.adjust(mask_soup.combine(weak, "intersection"), weights, k))
    assert int(common.sum()) <= k
    assert not (common & ~adjusted).any()


@LAW
@given(soups())
def test_no_weight_left_out_has_more_votes_than_one_kept(drawn) -> None:
    weak, weights, k = drawn
    tally = flat(mask_soup.combine(weak, "vote"))
    kept = flat(mask_soup.adjust(mask_soup.combine(weak, "vote"), weights, k))
    if 0 < k < len(kept):
        assert int(tally[~kept].max()) <= int(tally[kept].min())


def test_within_the_union_the_largest_weights_stay() -> None:
    weights = {"a": torch.tensor([[1.0, -5.0], [3.0, 9.0]]), "b": torch.tensor([-4.0, 2.0])}
    weak = bits("110001", "101010")  # the union is all but the 9
    assert flat(mask_soup.adjust(mask_soup.combine(weak, "union"), weights, 3)).tolist() == [
        *(False, True, True, False),
        *(True, False),
    ]


def test_beyond_the_intersection_the_largest_weights_fill_up() -> None:
    weights = {"a": torch.tensor([[1.0, -5.0], [3.0, 9.0]]), "b": torch.tensor([-4.0, 2.0])}
    weak = bits("110001", "101010")  # the intersection is the 1; the 9 is in no mask
    assert flat(mask_soup.adjust(mask_soup.combine(weak, "intersection"), weights, 3)).tolist() == [
        *(True, True, False, True),
        *(False, False),
    ]


@LAW
@given(soups(), st.sampled_from(WAYS))
def test_a_single_weak_mask_comes_back_unchanged(drawn, how: str) -> None:
    weak, weights, k = drawn
    adjusted = mask_soup.adjust(mask_soup.combine(weak[:1], how), weights, k)
    assert torch.equal(flat(adjusted), flat(weak[0]))


@LAW
@given(soups(), st.sampled_from(("union", "intersection")), st.integers(0, 5))
def test_a_soup_with_the_networks_own_mask_in_it_is_that_mask(drawn, how: str, at: int) -> None:
    weak, weights, k = drawn
    own = magnitude_mask(weights, k)
    weak.insert(min(at, len(weak)), own)
    adjusted = mask_soup.adjust(mask_soup.combine(weak, how), weights, k)
    assert torch.equal(flat(adjusted), flat(own))


def test_a_vote_can_overrule_the_networks_own_mask() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0, 6.0])}
    own = magnitude_mask(weights, 2)
    assert flat(own).tolist() == [False] * 4 + [True] * 2
    weak = [own, *bits("110000", "110000")]
    assert flat(mask_soup.adjust(mask_soup.combine(weak, "vote"), weights, 2)).tolist() == [
        *(True, True, False, False),
        *(False, False),
    ]


def test_the_union_of_others_need_not_be_the_networks_own_mask() -> None:
    weights = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0, 6.0])}
    adjusted = mask_soup.adjust(mask_soup.combine(bits("110000", "011000"), "union"), weights, 2)
    assert not torch.equal(flat(adjusted), flat(magnitude_mask(weights, 2)))


def test_agreement_of_known_masks() -> None:
    apart = mask_soup.agreement(bits("11000000", "00110000"))
    assert apart == {"union_density": 0.5, "intersection_density": 0.0, "agreement": 0.0}
    some = mask_soup.agreement(bits("11100000", "01110000", "01100000"))
    assert some == {"union_density": 0.5, "intersection_density": 0.25, "agreement": 0.5}
    same = mask_soup.agreement(bits("11000000", "11000000"))
    assert same == {"union_density": 0.25, "intersection_density": 0.25, "agreement": 1.0}


def test_more_votes_than_a_few_bits_hold_are_still_counted() -> None:
    assert int(mask_soup.votes(bits("100000") * 200)["a"][0, 0]) == 200
