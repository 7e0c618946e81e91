"""Rendered characters with captions: data for a small CLIP model, made of nothing but fonts.

The fonts are those inside the matplotlib wheel. Each (character, font) is rendered once, as a map
of distances to the outline. Batches are then made from these maps by tensor operations alone:
distorted as if written by hand, bold or thin, coloured, blurred and noisy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from instant_soup.seeds import generator

SIDE = 32  # pixels of an image
CELL = 64  # pixels of an atlas cell
HEIGHT = 36  # pixels of a capital letter in its cell
STEPS_PER_PIXEL = 8  # a distance of one cell pixel, in the uint8 steps of the atlas

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10", "cmsy10"),
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SYMBOLS = {
    "+": "plus sign",
    "=": "equals sign",
    "×": "multiplication sign",
    "÷": "division sign",
    "±": "plus minus sign",
    "<": "less than sign",
    ">": "greater than sign",
    "?": "question mark",
    "!": "exclamation mark",
    "#": "hash sign",
    "%": "percent sign",
    "&": "ampersand",
    "@": "at sign",
    "§": "section sign",
    "€": "euro sign",
    "π": "greek letter pi",
    "√": "square root sign",
    "∑": "summation sign",
    "∞": "infinity sign",
    "→": "right arrow",
    "←": "left arrow",
    "↑": "up arrow",
    "↓": "down arrow",
    "♥": "heart",
}
CHARACTERS = {
    **{str(i): (f"digit {name}", f"number {name}") for i, name in enumerate(DIGITS)},
    **{letter.upper(): (f"capital letter {letter}",) for letter in LETTERS},
    **{letter: (f"small letter {letter}",) for letter in LETTERS},
    **{symbol: (name,) for symbol, name in SYMBOLS.items()},
}
# Rows of a group: all digits, and others that keep the towers from knowing only digits. No class is
# in a group twice, so within it no caption fits another row's image.
GROUP = 32

TEMPLATES = (
    "a photo of the {}.",
    "a drawing of the {}.",
    "a picture of the {}.",
    "the {}.",
    "a photo of a {}.",
    "a drawing of a {}.",
    "a {}.",
)
COLOURS = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.6, 0.15),
    "blue": (0.1, 0.2, 0.85),
    "yellow": (0.95, 0.9, 0.15),
    "orange": (1.0, 0.55, 0.1),
    "purple": (0.5, 0.1, 0.6),
    "pink": (1.0, 0.65, 0.75),
    "brown": (0.45, 0.25, 0.1),
}
JITTER = 0.08  # of a colour's channels, either way
CONTRAST = 0.3  # least distance of ink and background in luminance, before the jitter
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass
class Atlas:
    """All glyphs, grouped by class.

    Attributes:
        cells: uint8, cells × CELL × CELL; 128 on a glyph's outline, more inside, less outside, by
            STEPS_PER_PIXEL.
        first: Number of each class's first cell, on the CPU.
        count: How many cells each class has, on the CPU.
        names: What a class is called in captions; validation asks for the first name.
    """

    cells: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    names: list[Sequence[str]]


def font_files() -> dict[str, Path]:
    """Name → file of the fonts in use, out of the installed matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return {name: folder / f"{name}.ttf" for name in FONTS}


def has_glyph(font: Path, character: str) -> bool:
    """Whether a font has the character at its code, by the name that it gives the glyph.

    TeX's fonts have other things than ASCII at ASCII's codes, so the code alone proves nothing.
    """
    from fontTools.agl import UV2AGL
    from matplotlib.ft2font import FT2Font

    face = FT2Font(str(font))
    number = face.get_char_index(ord(character))
    if number == 0:
        return False
    name = UV2AGL[ord(character)]
    return face.get_glyph_name(number) in (name, f"{name}oldstyle", f"uni{ord(character):04X}")


def render(font: Path, character: str, size: int) -> torch.Tensor:
    """One atlas cell (uint8, CELL × CELL): the glyph's signed distances, its box centred."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
    from scipy.ndimage import distance_transform_edt

    # On a larger sheet first: PIL's own box of a text begins at the origin, not at the ink.
    sheet = Image.new("L", (3 * CELL, 3 * CELL))
    ImageDraw.Draw(sheet).text((CELL, CELL), character, 255, ImageFont.truetype(font, size))
    ink = sheet.crop(sheet.getbbox())
    ink.thumbnail((CELL - 4, CELL - 4))  # some signs are much larger than a capital
    image = Image.new("L", (CELL, CELL))
    image.paste(ink, ((CELL - ink.width) // 2, (CELL - ink.height) // 2))
    inside = np.asarray(image) >= 128
    # Half a pixel, because the outline runs between the last pixel inside and the first outside.
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    distance -= np.where(inside, 0.5, -0.5)
    return torch.from_numpy(np.clip(128 + STEPS_PER_PIXEL * distance, 0, 255).astype(np.uint8))


def make_atlas() -> Atlas:
    """Render every character in every font that has it: some seconds."""
    from PIL import ImageFont

    sizes = {}
    for path in font_files().values():
        _, top, _, bottom = ImageFont.truetype(path, 100).getbbox("H")
        sizes[path] = round(100 * HEIGHT / (bottom - top))
    cells, count = [], []
    for character in CHARACTERS:
        own = [render(p, character, size) for p, size in sizes.items() if has_glyph(p, character)]
        cells += own
        count.append(len(own))
    counts = torch.tensor(count)
    return Atlas(torch.stack(cells), counts.cumsum(0) - counts, counts, list(CHARACTERS.values()))


def draw_classes(rows: int, draws: torch.Generator) -> torch.Tensor:
    """Class numbers of a batch, group by group: the ten digits and different others."""
    digits, others = torch.arange(len(DIGITS)), len(CHARACTERS) - len(DIGITS)
    groups = [
        torch.cat([digits, len(DIGITS) + torch.randperm(others, generator=draws)])[:GROUP]
        for _ in range(rows // GROUP)
    ]
    return torch.cat(groups)


def colour_pairs() -> list[tuple[str, str]]:
    """All pairs (ink, background) whose luminances are at least CONTRAST apart."""
    light = {
        name: sum(c * w for c, w in zip(rgb, LUMINANCE, strict=True))
        for name, rgb in COLOURS.items()
    }
    return [(a, b) for a in light for b in light if abs(light[a] - light[b]) >= CONTRAST]


def draw(
    atlas: Atlas, rows: int, key: tuple[int, ...], where: torch.device
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Make a batch of images with captions.

    Args:
        atlas: The glyphs, with `cells` on `where`.
        rows: Images in the batch, a multiple of GROUP.
        key: Numbers that seed the batch; it depends on nothing else but the kind of device.
        where: The device.

    Returns:
        Images (uint8, rows × 3 × SIDE × SIDE, on `where`), captions, class numbers.
    """
    draws = generator(*key)
    classes = draw_classes(rows, draws)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(rows, *shape, generator=draws)

    def one_of(choices: int) -> torch.Tensor:
        return torch.randint(choices, (rows,), generator=draws)

    pairs = colour_pairs()
    usual = torch.tensor([pairs.index(("white", "black")), pairs.index(("black", "white"))])
    pair = torch.where(uniform(0, 1) < 0.5, usual[one_of(2)], one_of(len(pairs)))
    weight = uniform(-1, 1)
    captions = _captions(atlas, classes, pair, weight, draws)

    # Two fonts of the character, mixed: outlines that are in neither.
    choice = torch.rand(rows, 2, generator=draws) * atlas.count[classes, None]
    chosen = (atlas.first[classes, None] + choice.long()).to(where)
    grid, scale = _grid(uniform, where)
    distances = functional.grid_sample(
        atlas.cells[chosen].float(), grid, padding_mode="border", align_corners=False
    )
    mixed = torch.lerp(distances[:, 0], distances[:, 1], uniform(0, 1, 1, 1).to(where))

    # From distances to ink: 1 inside, 0 outside, a ramp of `softness` image pixels between.
    grown = 1.0 + 2.0 * weight[:, None, None].to(where)  # cell pixels
    softness = uniform(1.0, 2.5, 1, 1).to(where)
    ink = ((mixed - 128) / STEPS_PER_PIXEL + grown) * scale / softness + 0.5
    pixels = torch.Generator(where).manual_seed(draws.initial_seed())
    noise = torch.randn(ink.shape, generator=pixels, device=where)
    ink = ink.clamp(0, 1) + noise * uniform(-0.08, 0.08, 1, 1).clamp(min=0).to(where)

    palette = torch.tensor(list(COLOURS.values()))
    numbers = torch.tensor([[list(COLOURS).index(name) for name in pair] for pair in pairs])
    colours = (palette[numbers[pair]] + uniform(-JITTER, JITTER, 2, 3)).clamp(0, 1)
    front, back = (255 * colours).to(where)[..., None, None].unbind(1)
    images = torch.addcmul(back, front - back, ink[:, None]).clamp_(0, 255)
    return images.to(torch.uint8), captions, classes


def caption_pairs(atlas: Atlas, key: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Two captions for each class, as if of two images: a function of `key` alone."""
    draws = generator(*key)
    classes = torch.arange(len(atlas.names))

    def one_each() -> list[str]:
        pair = torch.randint(len(colour_pairs()), classes.shape, generator=draws)
        weight = 2 * torch.rand(classes.shape, generator=draws) - 1
        return _captions(atlas, classes, pair, weight, draws)

    return one_each(), one_each()


def _grid(
    uniform: Callable[..., torch.Tensor], where: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel looks into its cell (rows × SIDE × SIDE × 2), and image ÷ cell pixels."""
    height = uniform(15, 27)  # of a capital letter in the image, in pixels
    scale = height / HEIGHT
    aspect = uniform(-0.3, 0.3).exp()
    angle, slant = uniform(-0.25, 0.25), uniform(-0.4, 0.5)
    shift = uniform(-3, 3, 2)
    # From image pixels to cell pixels: turn, slant, then scale both axes.
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)
    lean = torch.eye(2).repeat(len(angle), 1, 1)
    lean[:, 0, 1] = slant
    stretch = torch.stack([1 / (scale * aspect), 1 / scale], -1)
    matrix = (stretch[:, :, None] * (lean @ turn)).to(where)
    steps = torch.arange(SIDE, device=where) - (SIDE - 1) / 2
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    points = points.view(1, -1, 2) - shift.to(where)[:, None]
    places = (points @ matrix.transpose(1, 2)).view(-1, SIDE, SIDE, 2)
    bends = uniform(-1, 1, 2, 4, 4) * uniform(0, 5, 1, 1, 1)
    bends = functional.interpolate(bends.to(where), size=(SIDE, SIDE), mode="bicubic")
    places = places + bends.permute(0, 2, 3, 1)
    return places * (2 / CELL), scale.to(where)[:, None, None]


def _captions(
    atlas: Atlas,
    classes: torch.Tensor,
    pair: torch.Tensor,
    weight: torch.Tensor,
    draws: torch.Generator,
) -> list[str]:
    """A caption for each row: its class's name, at times with its boldness and colours."""
    pairs = colour_pairs()
    chance = torch.rand(len(classes), 4, generator=draws).tolist()
    captions = []
    for number, colours, boldness, (name, template, tells, on) in zip(
        classes.tolist(), pair.tolist(), weight.tolist(), chance, strict=True
    ):
        names = atlas.names[number]
        words = names[int(name * len(names))]
        ink, background = pairs[colours]
        if tells < 0.2:
            words = f"{ink} {words}"
        if on < 0.1:
            words = f"{words} on a {background} background"
        if abs(boldness) > 0.6 and tells > 0.8:
            words = f"{'bold' if boldness > 0 else 'thin'} {words}"
        captions.append(TEMPLATES[int(template * len(TEMPLATES))].format(words))
    return captions
