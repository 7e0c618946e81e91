"""The page: one file, nothing from a network, the same for the same ledger."""

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

from helpers import ledger_of, of_seeds, result
from instant_soup.reports import figures, page


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with small stand-ins for all figures."""
    for number, name in enumerate((*figures.OF_LEDGER, *figures.OF_RUN)):
        Image.new("RGB", (150 + 15 * number, 30)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, pictures: Path, *results: dict) -> str:
    folder.mkdir()
    path = page.write_page(
        folder / "index.html", ledger_of(folder, *results), list(results), pictures
    )
    return path.read_text()


RUNS = [
    *of_seeds("isp", 0.81, 0.82, 0.83),
    *of_seeds("lth", 0.71, 0.73, 0.72),
    *of_seeds("dense", 0.9, 0.91, 0.92),
    result(
        "early_bird", 0.79, drawn={"epoch": 0.25, "step": 55, "distance": 0.01234, "settled": True}
    ),
    result("isp", 0.5, model="clip-glyph", dataset="mnist-sample"),
]


def test_page_has_all_tables_and_figures(tmp_path, pictures):
    text = write(tmp_path / "a", pictures, *RUNS)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Results", "Accuracy against sparsity and cost", "ISP against the others",
            "Table 2, measured here",
        "Table 2 of the paper: CLIP ViT-B/32", "Table 3, measured here",
        "Table 3 of the paper: BERT-base", "Ablations", "Dense soups", "Essential sparsity",
            "Cost",
        "The latest run",
    ]  # fmt: skip
    assert {"82.00 ± 1.00 (n = 3)", "92.43 ± 0.6", "peak memory (GiB)", "LTH (IMP)"} <= set(
        re.split(r"<[^>]+>", text)
    )
    images = re.findall(r'width="(\d+)" src="data:image/png;base64,([^"]+)"', text)
    names = [*figures.OF_LEDGER, *figures.OF_RUN]
    files = [(pictures / name).read_bytes() for name in names]
    assert [base64.b64decode(data) for _, data in images] == files
    assert [width for width, _ in images] == [str(100 + 10 * i) for i in range(len(names))]
    assert "EarlyBird drew its ticket after 0.25 epochs (step 55, mask distance 0.0123)." in text
    assert "minilm · reviews · quick, 70 % sparse, seed 0." in text and "of 11 runs" in text


def test_page_needs_nothing_from_elsewhere(tmp_path, pictures):
    text = write(tmp_path / "a", pictures, *RUNS)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<iframe", text)
    sources = re.findall(r'(?:src|href)="([^"]{0,12})', text)
    assert sources and all(source.startswith(("#", "data:image/")) for source in sources)
    for anchor in re.findall(r'href="#([^"]+)"', text):
        assert text.count(f'id="{anchor}"') == 1
    assert "prefers-color-scheme: dark" in text and "$" not in text


def test_page_is_the_same_for_the_same_ledger(tmp_path, pictures):
    first, second = (write(tmp_path / name, pictures, *RUNS) for name in ("a", "b"))
    assert first == second
    assert write(tmp_path / "c", pictures, *RUNS, result("snip", 0.123)) != first


def test_page_shows_names_as_text(tmp_path, pictures):
    name = 'isp.x=<img src="http"> & $introduction'
    text = write(tmp_path / "a", pictures, *RUNS, result(variant=name))
    assert "ISP (isp.x=&lt;img src=&quot;http&quot;&gt; &amp; $introduction)" in text
    assert "<img src" not in text


def test_page_of_few_results(tmp_path, pictures):
    text = write(tmp_path / "a", pictures, result("dense"))
    assert "80.00" in text and "No results yet." in text  # none of CLIP


def test_a_ledger_without_a_run_of_its_own_has_its_page(tmp_path, pictures):
    ledger = ledger_of(tmp_path, *RUNS)
    text = page.write_page(tmp_path / "index.html", ledger, [], pictures).read_text()
    assert "92.43 ± 0.6" in text and "The latest run" not in text
