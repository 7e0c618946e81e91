"""The page: one file, nothing from a network, the same for the same ledger; and in a browser."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import ROOT, ledger_of, of_seeds, result
from instant_soup.reports import page, pareto
from instant_soup.reports.chart import chart_data
from instant_soup.reports.origins import apart_by_origin
from instant_soup.reports.tables import all_chapters

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small stand-ins for all figures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(page.CAPTIONS):
        Image.new("RGB", (150 + 15 * number, 30), (number, 200, 100)).save(folder / name)
    return folder


def write(folder: Path, pictures: Path, *results: dict) -> str:
    folder.mkdir()
    every = ledger_of(folder, *results)
    runs = apart_by_origin(every)
    chapters = all_chapters(runs)
    path = page.write_page(folder / "index.html", runs, list(results), pictures, chapters)
    return path.read_text()


def without_libraries(text: str) -> str:
    """A page without Vega's scripts, which name addresses that they never ask."""
    return re.sub(r"<script>/\* vega.*?</script>", "", text, flags=re.DOTALL)


DIGITS = {"model": "clip-glyph", "dataset": "mnist-sample", "family": "clip"}
EARLY = {"epoch": 0.25, "step": 55, "distance": 0.01234, "settled": True}
RUNS = [
    *of_seeds("isp", 0.81, 0.82, 0.83),
    *of_seeds("isp", 0.71, 0.72, 0.73, target_sparsity=0.8),
    *of_seeds("lth", 0.71, 0.73, 0.72, cost={"steps": 9, "search_steps": 0, "flops": 6e13}),
    *of_seeds("dense", 0.9, 0.91, 0.92),
    result("early_bird", 0.79, drawn=EARLY),
    result("dense", 0.95, **DIGITS),
    result("isp", 0.5, **DIGITS),
    result("one_shot", 0.4, **DIGITS),
]


def test_page_has_all_tables_and_figures(tmp_path, pictures):
    text = without_libraries(write(tmp_path / "a", pictures, *RUNS))
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "The verdict", "Compare methods", "Results", "Every method against ISP+ and ISP",
        "ISP against the others", "Cost", "Table 2 of the paper: CLIP ViT-B/32",
        "Table 3 of the paper: BERT-base", "Ranks", "Essential sparsity", "Cost and masks",
        "The latest run",
    ]  # fmt: skip
    assert {"82.00 ± 1.00 (n = 3)", "92.43 ± 0.6", "peak memory (GiB)", "LTH (IMP)"} <= set(
        re.split(r"<[^>]+>", text)
    )
    shown = dict(
        re.findall(r'<img alt="([^"]+)" width="\d+" src="data:image/webp;base64,([^"]+)', text)
    )
    for name, caption in page.CAPTIONS.items():
        if name == "accuracy_vs_sparsity.png":  # the chart shows it
            continue
        picture = base64.b64decode(shown[escape(caption)])
        seen = Image.open(io.BytesIO(picture)).convert("RGB")
        drawn = Image.open(pictures / name)
        assert (seen.size, seen.getpixel((9, 9))) == (drawn.size, drawn.getpixel((9, 9)))
    assert "EarlyBird took its mask after 0.25 epochs (step 55, mask distance 0.0123)." in text
    assert "minilm · reviews · quick, 80 % sparse, seed 0." in text and "of 16 runs" in text
    assert "Here ISP is 10.00 points above LTH" in text
    assert "ISP costs 1.5 fine-tunings, and LTH 5.0." in text


def test_no_word_of_a_text_is_broken(tmp_path):
    """A word that was hyphenated for the source's lines would keep its hyphen and a blank."""
    chapters = [one for own in all_chapters(ledger_of(tmp_path)).values() for one in own]
    texts = [one.text for one in chapters] + [*page.CAPTIONS.values(), pareto.CAPTION]
    assert [found for text in texts for found in re.findall(r"\w+- \w+", text)] == []


def test_an_inlined_figure_keeps_the_colours_of_its_legend(tmp_path):
    """A colour of few points is not lost among the many shades of letters and grids."""
    figure = Image.radial_gradient("L").resize((400, 400)).convert("RGB")
    colours = [(204, 121, 167), (68, 194, 155), (17, 119, 51), (122, 46, 0)]
    for number, colour in enumerate(colours):
        figure.paste(colour, (100 * number, 50, 100 * number + 6, 56))
    figure.save(tmp_path / page.RANKS)
    source = re.search(r"base64,([^\"]+)", page._gallery([page.RANKS], tmp_path))[1]
    seen = Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB")
    for number, colour in enumerate(colours):
        shown = seen.getpixel((100 * number + 3, 53))
        assert max(abs(a - b) for a, b in zip(shown, colour, strict=True)) < 8


def test_the_committed_page_is_not_too_large():
    assert (ROOT / "reports/index.html").stat().st_size <= 2_000_000  # bytes


def test_page_needs_nothing_from_elsewhere(tmp_path, pictures):
    text = without_libraries(write(tmp_path / "a", pictures, *RUNS))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script [^>]*src|<link|<iframe", text)
    sources = re.findall(r'(?:src|href)="([^"$]{0,12})', text)
    assert sources and all(source.startswith(("#", "data:image/")) for source in sources)
    for anchor in re.findall(r'href="#([^"$]+)"', text):
        assert text.count(f'id="{anchor}"') == 1
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"\$(style|introduction|navigation|sections|data|vega|script)\b", text)


def test_page_is_the_same_for_the_same_ledger(tmp_path, pictures):
    first, second = (write(tmp_path / name, pictures, *RUNS) for name in ("a", "b"))
    assert first == second
    assert write(tmp_path / "c", pictures, *RUNS, result("snip", 0.123)) != first


def test_page_shows_names_as_text(tmp_path, pictures):
    name = 'isp.x=<img src="http"> & $introduction </script>'
    text = without_libraries(write(tmp_path / "a", pictures, result(variant=name)))
    assert "isp.x=&lt;img src=&quot;http&quot;&gt; &amp; $introduction &lt;/script&gt;" in text
    assert "<img src" not in text and "introduction </script>" not in text
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text)[1])
    assert data["tasks"][0]["title"].endswith(name)


def test_page_of_few_results(tmp_path, pictures):
    text = write(tmp_path / "a", pictures, result("dense"))
    assert "80.00" in text and "No results yet." in text  # to give a verdict on


def test_a_ledger_without_a_run_of_its_own_has_its_page(tmp_path, pictures):
    ledger = ledger_of(tmp_path, *RUNS)
    path = page.write_page(tmp_path / "index.html", ledger, [], pictures, all_chapters(ledger))
    text = path.read_text()
    assert "92.43 ± 0.6" in text and "The latest run" not in text


def test_points_of_the_chart(tmp_path):
    more = [result("isp", 0.6, variant="isp.combine=vote"), result("isp", dataset="local:mine")]
    more += [result("isp", 0.1, processor="B"), result("isp", 0.2, processor="B", seed=1)]
    data = chart_data(apart_by_origin(ledger_of(tmp_path, *RUNS, *more)))
    mine, texts, digits, elsewhere = data["tasks"]
    assert mine["title"] == "minilm · local:mine · quick"  # one's own come first
    assert data["chosen"] == texts["title"] == "minilm · reviews · quick"  # has the most runs
    assert digits["title"] == "clip-glyph · mnist-sample · quick"
    assert elsewhere["title"] == "minilm · reviews · quick · run on B"
    assert [task["group"] for task in data["tasks"]] == [
        "Your own data and models", "Tasks", "Tasks", "Run elsewhere, or from other weights",
    ]  # fmt: skip
    assert texts["dense"]["mean"] == 91.0 and texts["metric"] == "test accuracy (%)"
    places = [(point["method"], point["sparsity"]) for point in texts["points"]]
    assert places == [("early_bird", 70), ("lth", 70), ("isp", 70), ("isp", 80)]
    assert texts["points"][2] == {
        "method": "isp", "name": "ISP", "sparsity": 70.0, "mean": 82.0, "spread": 1.0,
        "seeds": "0, 1, 2", "steps": 330.0, "cost": 1.5, "teraflops": 18.0, "cosine": 0.97,
        "command": "dvc exp run -S model=minilm -S dataset=reviews -S preset=quick "
        "-S sparsity=0.7 -S seed=0 -S 'methods=[]'",
    }  # fmt: skip
    assert mine["points"][0]["spread"] is None and mine["points"][0]["cost"] is None
    assert [method["id"] for method in data["methods"] if method["main"]] == [
        "isp",
        "lth",
        "one_shot",
    ]


def test_main_methods_differ_in_shape(tmp_path):
    every = [result(name, 0.7) for name in ("isp", "isp_plus", "lth", "one_shot")]
    data = chart_data(apart_by_origin(ledger_of(tmp_path, *every)))
    shapes = [method["shape"] for method in data["methods"] if method["main"]]
    assert len(shapes) == len(set(shapes)) == 4


# In a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[Any]:
    """A tab of headless Chromium with the page, and what it asked for and complained of."""
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    write(folder := tmp_path_factory.mktemp("page") / "a", pictures, *RUNS)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=[*flags, "--no-first-run"],
        )
        tab = chromium.pages[0]
        tab.set_default_timeout(120_000)
        tab.said = []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.said.append(request.url[:99]))
        tab.goto(f"file://{folder}/index.html")
        tab.wait_for_selector("#over-cost svg")
        yield tab
        chromium.close()


def test_choices_change_the_chart_and_the_tables(browser):
    def chart() -> str:
        browser.wait_for_function("[...charts.values()].every(Boolean)")
        return browser.inner_html("#over-sparsity") + browser.inner_html("#over-cost")

    def methods() -> list[str]:
        return browser.locator("#numbers tbody th").all_inner_texts()

    def tables() -> list[str]:
        return browser.locator("[data-task]:visible h3").all_inner_texts()

    texts, drawn = "minilm · reviews · quick", chart()
    assert browser.input_value("#task") == texts and set(tables()) == {texts}
    assert browser.input_value("#sparsity") == "80" and methods() == ["ISP"]
    assert "the best of the methods shown is ISP: 72.00 ± 1.00 (−19.00 from dense)" in (
        browser.inner_text("#summary")
    )
    browser.select_option("#sparsity", "70")
    assert methods() == ["ISP", "LTH (IMP)"] and chart() != drawn
    browser.select_option("#budget", "1")
    assert methods() == []
    browser.select_option("#budget", "2")
    assert methods() == ["ISP"]
    browser.click("button[data-choose=all]")
    assert methods() == ["ISP", "EarlyBird"]
    drawn = chart()
    browser.select_option("#task", "clip-glyph · mnist-sample · quick")
    assert chart() != drawn and methods() == ["ISP", "One-shot magnitude"]
    assert set(tables()) == {"clip-glyph · mnist-sample · quick"}
    browser.check("#all-tasks")
    assert set(tables()) == {texts, "clip-glyph · mnist-sample · quick"}
    browser.locator("#over-cost path[aria-roledescription=point]").first.hover(force=True)
    assert "dvc exp run" in browser.locator("#vg-tooltip-element").inner_text()


def test_tables_sort_by_keyboard(browser):
    table = browser.locator("#results table").last
    names = lambda: table.locator("tbody:last-child th").all_inner_texts()  # noqa: E731
    assert names() == ["One-shot magnitude", "ISP"]
    for order, direction in ((["ISP", "One-shot magnitude"], "descending"),
                             (["One-shot magnitude", "ISP"], "ascending")):  # fmt: skip
        table.get_by_role("button", name="70 % sparse").press("Enter")
        assert names() == order
        assert table.locator(f"th[aria-sort={direction}]").count() == 1


def test_a_link_opens_what_is_folded(browser):
    table = browser.locator("#cost [data-task]:not([hidden]) table").first
    assert not table.is_visible()
    browser.locator('nav a[href="#cost"]').press("Enter")
    assert table.is_visible()
    browser.locator("#cost > details > summary").press("Enter")
    assert not table.is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_page_can_be_read_by_all_and_asks_for_nothing(browser, width, scheme):
    """No error of axe, nothing wider than the window, no request, no complaint."""
    package = pytest.importorskip("axe_playwright_python")
    browser.set_viewport_size({"width": width, "height": 900})
    browser.emulate_media(color_scheme=scheme)
    browser.wait_for_function("[...charts.values()].every(Boolean)")
    # Vega draws anew a moment after the window has another width.
    browser.wait_for_function(f"document.documentElement.scrollWidth === {width}")
    browser.evaluate((Path(package.__file__).with_name("axe.min.js")).read_text())
    found = browser.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert [said for said in browser.said if not said.startswith(("data:", "file:"))] == []
