"""Names beside the points of a panel: none hides another name, a point or a line."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure

SIZE = 7  # of the letters, and of what a point takes, in points
GAPS = (5.0, 12.0, 20.0, 30.0, 42.0)  # between a point's middle and its name, in points
SIDES = ((0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (1, -1), (-1, -1))
WORST = 10.0  # how much worse it is to cover a name or to leave the panel than to cover a point
FAR = 0.5  # points² that a name may cover to be a point nearer to its own
PASSES = 3  # over the names: those placed first make room for the others


def name_points(
    axes: Axes,
    names: Sequence[str],
    colours: Sequence[str],
    points: np.ndarray,
    others: np.ndarray,
    lines: np.ndarray,
) -> None:
    """Write each name where it covers least, near its point, with a fine line between the two.

    The figure must be laid out before, and its panels must stay where they are.

    Args:
        axes: The panel, with its limits and scales.
        names: One for each point.
        colours: Those of the fine lines.
        points: Their places in the panel's units, n × 2.
        others: The places of all points that names keep clear of, m × 2.
        lines: Horizontal and vertical lines that names keep clear of, l × 2 ends × 2.
    """
    # Of a figure of an inch: a renderer has all its figure's pixels, and a name needs few of them.
    renderer = FigureCanvasAgg(Figure(figsize=(1, 1), dpi=axes.figure.dpi)).get_renderer()
    pixel = renderer.points_to_pixels(1.0)
    panel = np.array([axes.get_window_extent(renderer).extents]) / pixel

    def in_points(places: np.ndarray) -> np.ndarray:
        return axes.transData.transform(places.reshape(-1, 2)) / pixel

    middles, ends = in_points(points), in_points(lines).reshape(-1, 2, 2)
    marks = np.concatenate([in_points(others) - SIZE / 2, in_points(others) + SIZE / 2], axis=1)
    rules = np.concatenate([ends.min(axis=1) - 1, ends.max(axis=1) + 1], axis=1)
    sizes = [_size(axes, name, renderer) for name in names]
    ways = [_ways(middle, size) for middle, size in zip(middles, sizes, strict=True)]
    chosen = [0] * len(names)
    for turn in range(PASSES):
        for own, (boxes, shifts) in enumerate(ways):
            placed = [one for one in range(len(names)) if one != own and (turn or one < own)]
            written = np.array([ways[one][0][chosen[one]] for one in placed]).reshape(-1, 4)
            size = boxes[0, 2:] - boxes[0, :2]
            worth = _common(boxes, np.concatenate([marks, rules])).sum(axis=1)
            worth += FAR * np.hypot(*shifts.T)
            worth += WORST * _common(boxes, written).sum(axis=1)
            worth += WORST * (size.prod() - _common(boxes, panel)[:, 0])
            # A fine line that runs over another point or name is read as that one's.
            apart = np.concatenate([marks[~_within(middles[own], marks)], written])
            for share in np.linspace(0, 1, 12):
                on_line = middles[own] + share * shifts
                worth += SIZE * _within(on_line[:, None], apart[None]).sum(axis=1)
            chosen[own] = int(np.argmin(np.round(worth, 3)))
    for own, (_, shifts) in enumerate(ways):
        axes.annotate(
            names[own], points[own], shifts[chosen[own]], textcoords="offset points",
            fontsize=SIZE, ha="center", va="center", arrowprops={
                "arrowstyle": "-", "color": colours[own], "lw": 0.6, "shrinkA": 0, "shrinkB": 3,
            },
        )  # fmt: skip


def _size(axes: Axes, name: str, renderer: RendererAgg) -> np.ndarray:
    """Width and height of a name, in points."""
    text = axes.text(0, 0, name, fontsize=SIZE)
    extent = text.get_window_extent(renderer)
    text.remove()
    return np.array([extent.width, extent.height]) / renderer.points_to_pixels(1.0)


def _ways(middle: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a name may be: boxes (left, low, right, high), and the shifts of their middles."""
    shifts = np.array([np.array(side) * (gap + size / 2) for gap, side in product(GAPS, SIDES)])
    centres = middle + shifts
    return np.concatenate([centres - size / 2, centres + size / 2], axis=1), shifts


def _common(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The areas that boxes share, n × m."""
    low = np.maximum(ours[:, None, :2], others[None, :, :2])
    high = np.minimum(ours[:, None, 2:], others[None, :, 2:])
    return np.maximum(high - low, 0).prod(axis=2)


def _within(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether places lie in boxes."""
    inside = (places >= boxes[..., :2]) & (places <= boxes[..., 2:])
    return np.asarray(inside.all(axis=-1))
