"""Glyphs: every font draws what the caption says, every image shows it, every batch repeats."""

import itertools
from pathlib import Path

import matplotlib
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from helpers import ROOT
from instant_soup.pretraining import glyphs
from instant_soup.pretraining.glyphs import Atlas

CPU = torch.device("cpu")
LAW = settings(deadline=None, max_examples=25)
KEYS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 10**6))
DIGIT_NAMES = list(glyphs.CHARACTERS.values())[:10]
PROMPTS = ROOT / "src/instant_soup/data/prompts/mnist.yaml"


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return glyphs.make_atlas()


def cells_of(atlas: Atlas, number: int) -> torch.Tensor:
    """The cells of one class, as masks of their insides."""
    first, count = int(atlas.first[number]), int(atlas.count[number])
    return atlas.cells[first : first + count] > 128


@pytest.mark.parametrize("character", "07Az+?")
@pytest.mark.parametrize(
    "font", ["cmex10", "LastResortHE-Regular", "STIXNonUni", "DejaVuSansDisplay"]
)
def test_fonts_of_other_things_have_no_characters(font: str, character: str) -> None:
    file = Path(matplotlib.get_data_path()) / f"fonts/ttf/{font}.ttf"
    assert file.exists() and not glyphs.has_glyph(file, character)


def test_fonts_have_what_they_draw_and_nothing_else() -> None:
    files = glyphs.font_files()
    assert all(path.exists() for path in files.values())
    assert glyphs.has_glyph(files["cmsy10"], "A")  # script capitals
    assert not glyphs.has_glyph(files["cmsy10"], "7")  # an arrow, at the code of 7
    assert not glyphs.has_glyph(files["cmr10"], "<")  # an inverted exclamation mark
    assert glyphs.has_glyph(files["cmmi10"], "7")  # named "sevenoldstyle"
    assert not glyphs.has_glyph(files["cmmi10"], "=")  # a slash
    assert glyphs.has_glyph(files["STIXGeneral"], "∞")  # named "uni221E"


def test_every_font_has_all_digits_or_none() -> None:
    for name, path in glyphs.font_files().items():
        found = sum(glyphs.has_glyph(path, str(digit)) for digit in range(10))
        assert found == (0 if name == "cmsy10" else 10), name


def test_cells_are_grouped_by_class_and_complete(atlas: Atlas) -> None:
    assert atlas.cells.dtype == torch.uint8
    assert atlas.cells.shape == (int(atlas.count.sum()), glyphs.CELL, glyphs.CELL)
    assert torch.equal(atlas.first[1:], (atlas.first + atlas.count)[:-1]) and atlas.first[0] == 0
    assert (atlas.count >= 5).all()
    assert (atlas.count[:10] == len(glyphs.FONTS) - 1).all()


def test_no_cell_is_blank_or_cut_off(atlas: Atlas) -> None:
    inside = atlas.cells > 128
    share = inside.float().mean((1, 2))
    assert float(share.min()) > 0.01 and float(share.max()) < 0.5
    edge = torch.ones(glyphs.CELL, glyphs.CELL, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert not inside[:, edge].any()


def test_cells_are_centred(atlas: Atlas) -> None:
    for axis in (1, 2):
        there = (atlas.cells > 128).any(axis).int()
        low, high = there.argmax(1), there.flip(1).argmax(1)
        assert int((low - high).abs().max()) <= 2


def test_no_two_digits_of_a_font_look_alike(atlas: Atlas) -> None:
    # Every class's cells are in the fonts' order.
    digits = torch.stack([cells_of(atlas, digit) for digit in range(10)], 1)
    for of_font in digits:
        for one, other in itertools.combinations(of_font, 2):
            both, either = (one & other).sum(), (one | other).sum()
            assert float(both / either) < 0.95


def test_no_glyph_is_the_box_for_missing_ones(atlas: Atlas) -> None:
    boxes = [glyphs.render(path, "\ue5ff", 36) > 128 for path in glyphs.font_files().values()]
    boxes = [box for box in boxes if box.any()]
    assert boxes
    inside = atlas.cells > 128
    for box in boxes:
        assert not (inside == box).all((1, 2)).any()


def test_each_font_draws_the_digits_that_the_other_fonts_draw(atlas: Atlas) -> None:
    """By the most similar cell of another font: one with other things at its codes would fail."""
    inside = torch.stack([cells_of(atlas, digit) for digit in range(10)]).float()
    blurred = functional.avg_pool2d(inside, 4).flatten(2)
    for font in range(blurred.shape[1]):
        others = torch.cat([blurred[:, :font], blurred[:, font + 1 :]], 1)
        nearest = torch.cdist(blurred[:, font], others.flatten(0, 1)).argmin(1)
        right = nearest // others.shape[1] == torch.arange(10)
        assert int(right.sum()) >= 9, font


@LAW
@given(key=KEYS, groups=st.integers(1, 3))
def test_batches_repeat_and_keys_differ(atlas: Atlas, key: tuple[int, int], groups: int) -> None:
    rows = groups * glyphs.GROUP
    images, captions, classes = glyphs.draw(atlas, rows, key, CPU)
    again = glyphs.draw(atlas, rows, key, CPU)
    assert torch.equal(images, again[0]) and captions == again[1]
    assert torch.equal(classes, again[2])
    other = glyphs.draw(atlas, rows, (key[0], key[1] + 1), CPU)
    assert not (images == other[0]).flatten(1).all(1).any()
    assert images.dtype == torch.uint8 and images.shape == (rows, 3, glyphs.SIDE, glyphs.SIDE)
    assert len(captions) == len(classes) == rows


@LAW
@given(key=KEYS)
def test_captions_name_their_class_and_no_other_digit(atlas: Atlas, key: tuple[int, int]) -> None:
    _, captions, classes = glyphs.draw(atlas, 2 * glyphs.GROUP, key, CPU)
    for caption, number in zip(captions, classes.tolist(), strict=True):
        words = caption.rstrip(".").split()
        names = [name.split() for name in atlas.names[number]]
        assert any(words[i : i + len(name)] == name for name in names for i in range(len(words))), (
            caption
        )
        digits = [glyphs.DIGITS.index(word) for word in words if word in glyphs.DIGITS]
        assert digits == ([number] if number < 10 else []), caption
        assert caption == caption.lower()


@LAW
@given(key=KEYS, groups=st.integers(1, 4))
def test_a_group_has_all_digits_and_no_class_twice(
    atlas: Atlas, key: tuple[int, int], groups: int
) -> None:
    _, _, classes = glyphs.draw(atlas, groups * glyphs.GROUP, key, CPU)
    for group in classes.split(glyphs.GROUP):
        assert len(set(group.tolist())) == glyphs.GROUP
        assert set(range(10)) <= set(group.tolist())


def test_other_classes_all_come_up(atlas: Atlas) -> None:
    classes = [glyphs.draw(atlas, 4 * glyphs.GROUP, (0, step), CPU)[2] for step in range(20)]
    assert set(torch.cat(classes).tolist()) == set(range(len(glyphs.CHARACTERS)))


def test_every_image_of_many_draws_shows_something(atlas: Atlas) -> None:
    """Somewhere the luminance, smoothed against noise, is far from the background's.

    No law: of other draws a thin stroke between near colours may be lost, one in some thousand.
    """
    spreads = []
    for step in range(40):
        images, _, _ = glyphs.draw(atlas, 2 * glyphs.GROUP, (0, step), CPU)
        light = (images * torch.tensor(glyphs.LUMINANCE)[:, None, None]).sum(1, keepdim=True) / 255
        smooth = functional.avg_pool2d(light, 2, 1).flatten(1)
        spreads.append(smooth.max(1).values - smooth.min(1).values)
    assert float(torch.cat(spreads).min()) > 0.12


def test_captions_tell_the_colours_of_their_images(atlas: Atlas) -> None:
    """Background words against the corner pixels: a caption must not tell of another row."""
    checked = 0
    for step in range(20):
        images, captions, _ = glyphs.draw(atlas, 4 * glyphs.GROUP, (1, step), CPU)
        for image, caption in zip(images.float() / 255, captions, strict=True):
            if " background" not in caption:
                continue
            name = caption.split(" background")[0].split()[-1]
            edge = torch.cat([image[:, 0], image[:, -1]], 1).median(1).values
            distance = (edge - torch.tensor(glyphs.COLOURS[name])).abs()
            assert float(distance.max()) < glyphs.JITTER + 0.12, caption
            checked += 1
    assert checked > 100


def test_inks_stand_out_from_their_backgrounds() -> None:
    weights = torch.tensor(glyphs.LUMINANCE)
    pairs = glyphs.colour_pairs()
    for ink, background in pairs:
        one, other = (torch.tensor(glyphs.COLOURS[name]) @ weights for name in (ink, background))
        assert float((one - other).abs()) >= glyphs.CONTRAST - 1e-6
        assert (background, ink) in pairs  # light on dark as well as dark on light
    assert {ink for ink, _ in pairs} == set(glyphs.COLOURS)
    assert ("white", "black") in pairs and ("red", "brown") not in pairs


def test_prompts_of_the_task_are_captions_of_the_training() -> None:
    """Those without "handwritten", a word that no rendered character deserves."""
    task = yaml.safe_load(PROMPTS.read_text())
    prompts = {t.format(n) for t in task["templates"] for n in task["classes"]}
    known = {t.format(n) for t in glyphs.TEMPLATES for ns in DIGIT_NAMES for n in ns}
    assert {p for p in prompts if "handwritten" not in p} <= known
    assert len(prompts & known) >= 50


@LAW
@given(key=KEYS)
def test_caption_pairs_are_two_tellings_of_each_class(atlas: Atlas, key: tuple[int, int]) -> None:
    one, other = glyphs.caption_pairs(atlas, key)
    assert (one, other) == glyphs.caption_pairs(atlas, key)
    assert one != other and len(one) == len(other) == len(atlas.names)
    for names, *captions in zip(atlas.names, one, other, strict=True):
        assert all(any(name in caption for name in names) for caption in captions)
