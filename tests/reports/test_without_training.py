"""A language model without training: its essential sparsity, and its place in the chapter."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers import ROOT, cells_of, ledger_of
from instant_soup.reports import without_training
from instant_soup.reports.render import markdown
from instant_soup.reports.tables import all_chapters
from instant_soup.reports.without_training import OF_COSINES, OF_PERPLEXITIES

PLACE = ("llama", "abcd", "texts")


def rows_of(method: str, rises: dict[float, float], **patterns: float) -> list[tuple]:
    """Rows of a criterion: perplexity rises from 20 by so many percent of a logarithm."""
    found = [(method, "", s, 20 * np.exp(rise / 100)) for s, rise in ({0.0: 0.0} | rises).items()]
    found += [(method, name.replace("of", ":"), 0.5, value) for name, value in patterns.items()]
    return [(*PLACE, *row) for row in found]


def test_the_essential_sparsity_of_a_criterion_is_where_one_percent_is_lost(tmp_path: Path) -> None:
    slow = dict.fromkeys((0.1, 0.2, 0.3, 0.4), 0.5) | {0.5: 1.5, 0.6: 9.0}
    rows = rows_of("fisher", slow, **{"2of4": 1234.5})
    rows += rows_of("magnitude", {0.1: 0.0, 0.2: 2.0, 0.3: 0.0, 0.4: 0.0, 0.5: 9.0})
    rows += rows_of("wanda", {0.1: 0.0, 0.2: 2.0})  # too few for a curve
    frame = pd.DataFrame(rows, columns=OF_PERPLEXITIES)
    frame.to_csv(tmp_path / without_training.PERPLEXITIES, index=False)
    (chapter,) = without_training.chapters(tmp_path)  # no masks were compared
    table = markdown([chapter])
    assert cells_of(table, "Fisher, all matrices")[-2:] == ["1,234", "45"]
    assert cells_of(table, "Magnitude, each matrix")[-1] == "15"
    assert cells_of(table, "Wanda, each row")[-1] == "–"


def test_cosines_are_found_in_either_order(tmp_path: Path) -> None:
    pairs = [
        (*PLACE, 0.5, "", "wanda", "fisher", 0.75),
        (*PLACE, 0.5, "", "fisher", "magnitude", 1),
    ]
    rows = pd.DataFrame(pairs, columns=OF_COSINES)
    table = markdown([without_training.cosines(rows)])
    names = list(without_training.NAMES)
    of_fisher = dict(zip(names, cells_of(table, "fisher"), strict=True))
    assert of_fisher["fisher"] == of_fisher["magnitude"] == "1.000"
    assert of_fisher["wanda"] == "0.750" and of_fisher["sparsegpt"] == "–"


def test_the_chapter_has_what_the_committed_studies_measured(tmp_path: Path) -> None:
    nothing = ledger_of(tmp_path)
    studies = ROOT / "reports/studies"
    _, untrained, alike = all_chapters(nothing, studies)["essential_sparsity"]
    for chapter, name in ((untrained, "language_one_shot.md"), (alike, "language_masks.md")):
        assert markdown([chapter]) == (studies / name).read_text()
    assert len(all_chapters(nothing, tmp_path)["essential_sparsity"]) == 1
