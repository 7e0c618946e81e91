"""Figures: they are drawn, the same for the same numbers, and every method can be told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from helpers import ledger_of, result
from instant_soup.reports import figures
from instant_soup.reports.results import METHOD_NAMES


def curve(steps: int, prunings: int) -> pd.DataFrame:
    """A curve that falls, with the validation metric at every tenth step."""
    step = np.arange(1, steps + 1)
    return pd.DataFrame(
        {
            "step": step,
            "train_loss": np.where(step == 3, np.nan, np.exp(-step / steps)),
            "validation": np.where(step % 10 == 0, step / steps, np.nan),
            "sparsity": np.minimum(step * 2 // 3, prunings) / 10,
        }
    )


def rounds(count: int) -> list[dict[str, Any]]:
    return [
        {"round": i, "sparsity": 0.1 * (i + 1), "steps": 6, "before": {"pearson": 0.8},
         "after": 0.7, "agreement": 0.9 if i else None}
        for i in range(count)
    ]  # fmt: skip


def assert_picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert "Software" not in picture.info
    assert path.stat().st_size > 3000


@pytest.mark.parametrize("curves", [
    {"dense": curve(60, 0), "isp": curve(60, 4), "snip": curve(60, 0)},
    {"isp": curve(4, 9)},
])  # fmt: skip
def test_training_curves(tmp_path, curves):
    figures.training_curves(curves, "accuracy", tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("count", [0, 1, 9])
def test_isp_rounds(tmp_path, count):
    figures.isp_rounds(rounds(count), "pearson", tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("methods", [["dense"], ["isp"], ["dense", "random", "isp", "new"]])
def test_layer_sparsity(tmp_path, methods):
    figures.layer_sparsity([result(m) for m in methods], tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


@pytest.mark.parametrize("methods", [["dense"], ["isp"], ["dense", "random", "isp", "new", "lth"]])
def test_matrix_density(tmp_path, methods):
    results = [result(m) for m in methods]
    results[-1].pop("matrix_sparsity")  # as results of before have it
    figures.matrix_density(results, tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


def test_densities_stand_at_their_layer_and_type():
    table = figures._by_layer_and_type(result("isp"))
    assert list(table.index) == ["attention.self.query", "output.dense"]
    assert list(table.columns) == list(range(6))
    assert table.loc["output.dense", 5] == pytest.approx(0.15)


@pytest.mark.parametrize("runs", [
    [],
    [result("dense")],
    [result(value=0.7, metric="pearson")],
    [result(m, dataset=f"d{i}", seed=s) for m in ("dense", "isp") for i in range(4) for s in (0, 1)]
    + [result("isp", variant="isp.combine=vote"), result("isp", target_sparsity=0.5)],
])  # fmt: skip
@pytest.mark.parametrize(
    "draw",
    [
        *(figures.accuracy_vs_sparsity, figures.cost_vs_sparsity),
        *(figures.mask_similarity, figures.essential_sparsity),
    ],
)
def test_figures_of_the_ledger(tmp_path, draw, runs):
    ledger = ledger_of(tmp_path, *runs)
    draw(ledger, tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")
    if len(runs) > 1:
        draw(ledger, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("curves, points", [(0, 1), (0, 4), (1, 0), (1, 1), (1, 4), (2, 5), (3, 2)])
def test_curves_have_the_large_panels(tmp_path, monkeypatch, curves, points):
    """Every section has a panel: curves first, single sparsities smaller, unless there are none."""
    runs = [result(dataset=f"a{i}", target_sparsity=0.5) for i in range(points)]
    for i in range(curves):
        runs += [result(dataset=f"b{i}", target_sparsity=s) for s in (0.5, 0.9)]
    saved: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: saved.append(figure))
    figures.accuracy_vs_sparsity(ledger_of(tmp_path, *runs), "a.png")
    saved[0].draw_without_rendering()
    panels = saved[0].axes
    names = [axes.get_title().split(" · ")[1] for axes in panels]
    assert names == [f"b{i}" for i in range(curves)] + [f"a{i}" for i in range(points)]
    boxes = [axes.get_window_extent() for axes in panels]
    areas = [box.width * box.height for box in boxes]
    if curves and points:
        assert min(areas[:curves]) > 1.5 * max(areas[curves:])
    else:
        assert max(areas) < 1.1 * min(areas)
    assert not any(boxes[j].overlaps(b) for i, b in enumerate(boxes) for j in range(i))


def test_every_method_is_told_apart_by_its_marker():
    assert set(figures.STYLES) == set(METHOD_NAMES)
    markers = [marker for _, marker in (*figures.STYLES.values(), *figures.OTHER_STYLES)]
    assert len(set(markers)) == len(markers)


def limits(**means: float) -> tuple[float, float]:
    """The y-limits of a panel with these means."""
    axes = Figure().subplots()
    axes.plot(list(means.values()))
    figures._leave_out_far_below(axes, pd.Series(means))
    return axes.get_ylim()


def test_a_collapsed_control_does_not_flatten_the_others():
    low, high = limits(dense=82.0, isp=80.0, one_shot=72.0, random_init=10.0)
    assert 62 < low < 72 and high > 82
    low, _ = limits(dense=82.0, isp=80.0, one_shot=72.0, random=64.0)
    assert low < 64
    low, _ = limits(dense=82.0, isp=80.0, one_shot=10.0)  # a main method that collapses is shown
    assert low < 10
    low, high = limits(isp=82.0, random=10.0)
    assert 50 < low < 80 and high > 82
    low, _ = limits(dense=82.0, snip=10.0)  # no main method that is sparse
    assert low < 10


def test_what_is_left_out_takes_no_room_above():
    _, near = limits(dense=97.0, isp=96.0, one_shot=93.0)
    _, far = limits(dense=97.0, isp=96.0, one_shot=93.0, random=35.0)
    assert 97 < far < 97.5 and 97 < near < 97.5


def test_a_dense_network_below_all_others_is_shown():
    low, high = limits(dense=27.0, isp=50.0, lth=46.0, one_shot=49.0)
    assert low < 27 and high > 50


def test_a_name_with_dollars_is_no_formula(tmp_path):
    runs = [
        result(method, 0.8, model="local:a$b_$", variant="data.label=x$y_$", target_sparsity=s)
        for method in ("dense", "isp", "one_shot")
        for s in (0.5, 0.7)
    ]
    for draw in (figures.accuracy_vs_sparsity, figures.cost_vs_sparsity, figures.mask_similarity):
        draw(ledger_of(tmp_path, *runs), tmp_path / "a.png")
    assert figures.title_of("a$b$").count(r"\$") == 2


def test_no_line_of_a_title_is_too_wide():
    title = figures.title_of(
        "clip-glyph · mnist-sample · quick · run with weights 399d3647 on AMD EPYC (AVX512, bf16)",
        "training.teacher=dense training.retrain=norms_and_biases training.epochs=4",
    )
    lines = title.splitlines()
    assert max(map(len, lines)) <= figures.WIDEST
    assert lines[:3] == [
        "clip-glyph · mnist-sample · quick",
        "run with weights 399d3647",
        "on AMD EPYC (AVX512, bf16)",
    ]
    assert figures.title_of("minilm · reviews · quick · run on B") == (
        "minilm · reviews · quick\nrun on B"
    )
