"""Names beside points: each can be read, and is nearest to its own point."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from instant_soup.reports.labels import SIZE, name_points

NAMES = ["LTH-Rewind", "LTH", "Lottery Pool"]
CLUSTERS = {
    "apart": [(1.0, 1.0), (3.0, 2.0), (5.0, 3.0)],
    "in a heap": [(5.0, 4.8), (5.1, 4.9), (5.2, 5.0)],
    "on one place": [(3.0, 3.0), (3.0, 3.0), (3.0, 3.0)],
    "in a corner": [(0.1, 5.9), (0.1, 5.8), (0.2, 5.7)],
    "at the right": [(5.95, 1.0), (5.95, 1.1), (5.95, 1.2)],
}


def panel(points: list[tuple[float, float]], level: float) -> tuple[Axes, list[Bbox]]:
    """A panel with three named points, one more beside them, and a line; the boxes of the names."""
    figure = Figure(figsize=(5, 3.9), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 6), ylim=(0, 6))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    named = np.array(points)
    others = np.concatenate([named, named[:1] + np.array([0.3, -0.2])])
    lines = np.array([[(0.0, level), (6.0, level)]])
    name_points(axes, NAMES, ["k"] * 3, named, others, lines)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in axes.texts:
        text.update_positions(renderer)
    # Of the letters alone: a name's own extent has its fine line in it.
    return axes, [Text.get_window_extent(text, renderer) for text in axes.texts]


@pytest.mark.parametrize("name", CLUSTERS)
def test_names_hide_neither_each_other_nor_points_and_stay_in_the_panel(name):
    axes, boxes = panel(CLUSTERS[name], level=5.5)
    assert [text.get_text() for text in axes.texts] == NAMES
    inside = axes.get_window_extent()
    half = SIZE / 2 * axes.get_figure().dpi / 72
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        assert inside.y0 <= box.y0 and box.y1 <= inside.y1
        for x, y in axes.transData.transform(CLUSTERS[name]):
            assert not box.overlaps(Bbox.from_extents(x - half, y - half, x + half, y + half))
        level = axes.transData.transform((0, 5.5))[1]
        assert not box.y0 < level < box.y1


def test_a_name_with_room_is_right_above_its_point():
    axes, boxes = panel(CLUSTERS["apart"], level=5.5)
    x, y = axes.transData.transform((3.0, 2.0))
    assert (boxes[1].x0 + boxes[1].x1) / 2 == pytest.approx(x, abs=1)
    assert 0 < boxes[1].y0 - y < 12
