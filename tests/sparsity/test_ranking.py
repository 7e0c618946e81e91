"""Rankings piece by piece, of shards and of files: the mask of the whole, to the weight."""

import math
import operator
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import on_shards
from instant_soup.errors import UserError
from instant_soup.sparsity import masks, ranking, scores
from instant_soup.sparsity.ranking import Pieces, Shards

LAW = settings(deadline=None, max_examples=40)
# Few values, so that many are equal; two tensors of so many rows, of three columns.
ROWS = st.lists(st.tuples(*[st.integers(-2, 2).map(float)] * 3), max_size=6)


@LAW
@given(ROWS, ROWS, st.integers(1, 3), st.sampled_from([1, 5, 2**17]), st.booleans(), st.data())
def test_shards_find_the_mask_of_the_whole(one, other, shards, few, by_priority, data) -> None:
    """Equal scores too are kept in the order of the whole; with priorities and without."""
    whole = {"a": torch.tensor(one).view(-1, 3), "b": torch.tensor(other).view(-1, 3)}
    sizes = [s.numel() for s in whole.values()]
    k = data.draw(st.integers(0, sum(sizes)))
    places = data.draw(st.lists(st.integers(0, 2), min_size=sum(sizes), max_size=sum(sizes)))
    split = torch.tensor(places, dtype=torch.uint8).split(sizes)
    priority = {name: p.view(-1, 3) for name, p in zip(whole, split, strict=True)}

    def ranked(part: Any, own: Shards = ranking.WHOLE) -> masks.Mask:
        return masks.keep_largest(part[0], k, part[1] if by_priority else None, own)

    def cut(tensors: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
        return {name: t.tensor_split(shards)[i] for name, t in tensors.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SAMPLE", few)
        patch.setattr(ranking, "PIECE", 7)
        found = on_shards([(cut(whole, i), cut(priority, i)) for i in range(shards)], ranked)
    for name, kept in ranked((whole, priority)).items():
        assert torch.equal(torch.cat([part[name] for part in found]), kept)


@LAW
@given(ROWS, ROWS, st.sampled_from([1, 5, 2**17]), st.data())
def test_the_threshold_is_that_of_a_sort(one, other, few, data) -> None:
    """Its value, how many are larger, how many equal; of scores read piece by piece."""
    whole = {"a": torch.tensor(one).view(-1, 3), "b": torch.tensor(other).view(-1, 3)}
    every = sorted((float(x) for w in whole.values() for x in w.flatten()), reverse=True)
    k = data.draw(st.integers(0, len(every)))
    read = {n: Pieces(w.shape, lambda where, w=w: w.flatten()[where]) for n, w in whole.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SAMPLE", few)
        patch.setattr(ranking, "PIECE", 4)
        found = ranking.threshold(read, k)
    if 0 < k < len(every):
        value = every[k - 1]
        assert found == (value, sum(x > value for x in every), every.count(value))
    else:
        assert found == ((math.inf, 0, 0) if not k else (-math.inf, 0, k))


def test_many_scores_in_shards_are_ranked_as_the_whole_is() -> None:
    """Enough of them that a sample brackets the threshold; half of them equal."""
    draws = torch.Generator().manual_seed(0)
    whole = torch.randn(3 * ranking.SAMPLE, 2, generator=draws).abs()
    whole[torch.rand(whole.shape, generator=draws) < 0.5] = 0.5
    for sparsity in (0.2, 0.5, 0.9):
        k = masks.number_kept(whole.numel(), sparsity)
        wanted = masks.keep_largest({"w": whole}, k)["w"]
        parts = on_shards(
            list(whole.split([1000, 2 * ranking.SAMPLE, ranking.SAMPLE - 1000])),
            lambda part, own, k=k: masks.keep_largest({"w": part}, k, shards=own)["w"],
        )
        assert torch.equal(torch.cat(parts), wanted) and int(wanted.sum()) == k


@pytest.mark.parametrize(
    ("how", "number"),
    [(ranking.GREATER, operator.gt), (ranking.AT_LEAST, operator.ge), (ranking.EQUAL, operator.eq)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_scores_of_all_types_are_compared_as_numbers_are(
    how: Any, number: Any, dtype: torch.dtype
) -> None:
    """Those that numpy knows, and those that it does not; into a new tensor or a given one."""
    numbers = [-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, math.inf]
    scores = torch.tensor(numbers, dtype=dtype, requires_grad=True)
    for value in numbers:
        expected, room = [number(x, value) for x in numbers], torch.empty(7, dtype=torch.bool)
        assert ranking.compare(how, scores, value).tolist() == expected
        assert ranking.compare(how, scores, value, out=room) is room and room.tolist() == expected


def test_scores_are_read_from_a_file_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model's that does not fit into memory: no more than a piece is ever read at once."""
    weights = torch.randn(700, 500, generator=torch.Generator().manual_seed(0))
    largest = 0
    monkeypatch.setattr(ranking, "PIECE", 1000)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "w.npy", weights.numpy())
        stored = np.load(Path(folder) / "w.npy", mmap_mode="r").reshape(-1)

        def read(where: Any) -> torch.Tensor:
            nonlocal largest
            found = torch.from_numpy(stored[where].copy())
            largest = max(largest, len(found))
            return found

        streamed = {"w": scores.by_magnitude(Pieces(weights.shape, read))}
        mask = scores.best(streamed, 0.7)["w"]
    assert torch.equal(mask, scores.magnitude({"w": weights}, 0.7)["w"])
    assert largest <= ranking.SAMPLE


def test_fisher_scores_are_computed_as_they_are_needed() -> None:
    draws = torch.Generator().manual_seed(0)
    w, v = (torch.rand(60, 50, generator=draws) for _ in range(2))
    mask = scores.best(scores.worth_of("fisher", {"w": w}, {"w": v}), 0.6)
    assert torch.equal(mask["w"], scores.best({"w": w.square() * v}, 0.6)["w"])


def test_infinite_scores_are_kept_or_not_as_others_are() -> None:
    scores = {"w": torch.tensor([float("inf"), 1.0, float("-inf")])}
    for k in range(4):
        assert masks.keep_largest(scores, k)["w"].tolist() == [k > 0, k > 1, k > 2]


@pytest.mark.parametrize("k", [0, 3, 8])
def test_nan_is_refused_on_all_shards(k: int) -> None:
    parts = [torch.ones(4), torch.tensor([1.0, 2.0, float("nan"), 0.0])]

    def refused(part: torch.Tensor, own: Shards) -> str:
        with pytest.raises(UserError) as caught:
            masks.keep_largest({"w": part}, k, shards=own)
        return str(caught.value)

    first, second = on_shards(parts, refused)
    assert first == second and "NaN" in first


@pytest.mark.parametrize("lazy", [False, True])
def test_moments_of_zeros_are_refused_where_all_shards_have_none(lazy: bool) -> None:
    """One shard's zeros alone, or a shard without rows, are no fault."""
    score = scores.worth_of if lazy else scores.scores_of

    def masked(moments: torch.Tensor, own: Shards) -> list[bool]:
        weights = {"w": torch.arange(1.0, 1 + len(moments))}
        worth = score("fisher", weights, {"w": moments}, own)
        return scores.best(worth, 0.5, shards=own)["w"].tolist()

    zeros, some, none = torch.zeros(2), torch.tensor([3.0, 5.0]), torch.empty(0)
    assert on_shards([zeros, some, none], masked) == [[False, False], [True, True], []]

    def refused(moments: torch.Tensor, own: Shards) -> str:
        with pytest.raises(UserError) as caught:
            masked(moments, own)
        return str(caught.value)

    for line in on_shards([zeros, zeros, none], refused):
        assert line.startswith("gradients: all are zero,")
