"""Tables of ablations: which rows enter, where they stand, and what they are compared with."""

import pytest

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.reports import ablations
from instant_soup.reports.render import markdown

NEAR, FAR = (0.80, 0.81, 0.82), (0.60, 0.61, 0.63)


def tables_of(tmp_path, *runs) -> dict[str, str]:
    """Title → Markdown of each table."""
    text = markdown([ablations.chapter(ledger_of(tmp_path, *runs))])
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0]: part for part in parts}


def test_each_value_of_a_setting_has_its_row_beside_the_papers(tmp_path):
    found = tables_of(
        tmp_path,
        *of_seeds("isp", *NEAR),
        *of_seeds("isp", *FAR, variant="isp.denoisers=6"),
        *of_seeds("progressive", 0.79, 0.80, 0.81),
        *of_seeds("isp", *FAR, variant="isp.denoisers=6 isp.look_ahead=30"),  # two at once
    )
    assert list(found) == [
        "Denoisers off and on (Table 4)",
        "Number of denoisers N (Table 5)",
        "Other changed settings: minilm · reviews · quick",
    ]
    others = found["Other changed settings: minilm · reviews · quick"]
    assert cells_of(others, "ISP") == ["81.00 ± 1.00"] and others.count("| ISP (") == 1
    assert cells_of(others, "ISP (denoisers=6, look_ahead=30)") == ["61.33 ± 1.53"]
    table = found["Number of denoisers N (Table 5)"]
    assert cells_of(table, "0") == ["80.00 ± 1.00 (n = 3)", "0.67", "70.32"]
    assert cells_of(table, "3") == ["81.00 ± 1.00 (n = 3)", "1.00", "–"]  # the quick preset's own
    assert cells_of(table, "6") == ["61.33 ± 1.53 (n = 3) ▼", "1.00", "71.16"]
    assert cells_of(table, "16") == ["–", "–", "71.16"]
    assert "| isp.denoisers |" in table and "The preset has 3" in table
    on_off = found["Denoisers off and on (Table 4)"]
    row = "minilm · reviews · quick, 70 % sparse, accuracy (%)"
    assert cells_of(on_off, row) == ["80.00 ± 1.00 (n = 3)", "81.00 ± 1.00 (n = 3)", "1.50"]
    assert cells_of(on_off, "paper: BERT QNLI") == ["89.28", "90.06", "–"]


def test_a_column_without_another_number_of_denoisers_has_no_place_in_their_table(tmp_path):
    high = {"target_sparsity": 0.9}
    found = tables_of(
        tmp_path,
        *(result("isp", 0.8, **where) for where in ({}, high, {"variant": "isp.denoisers=6"})),
        *(result("progressive", 0.8, **where) for where in ({}, high)),
    )
    assert "90 % sparse" in found["Denoisers off and on (Table 4)"]
    table = found["Number of denoisers N (Table 5)"]
    assert "70 % sparse" in table and "90 % sparse" not in table


@pytest.mark.parametrize(
    ("setting", "value", "title"),
    [
        ("isp.combine", "vote", "Combination of the weak masks"),
        ("isp.adjust", "last_round", "When the soup is adjusted"),
        ("isp.own_mask", "true", "The network's own mask in the soup"),
        ("isp.look_ahead", "30", "Look-ahead steps C (Table 7)"),
    ],
)
def test_variants_are_found_by_their_name(tmp_path, setting, value, title):
    found = tables_of(
        tmp_path, result("isp", 0.8), result("isp", 0.7, variant=f"{setting}={value}")
    )
    assert list(found) == [title]
    assert cells_of(found[title], value.capitalize() if value in ("true", "false") else value)[
        0
    ].startswith("70.00")


def test_other_sparsities_and_models_are_columns_of_their_own(tmp_path):
    runs = [
        result("isp", value + more, variant=variant, **where)
        for more, where in (
            (0.00, {}),
            (0.01, {"target_sparsity": 0.9}),
            (0.02, {"model": "clip-glyph", "family": "clip"}),
        )
        for value, variant in ((0.8, ""), (0.7, "isp.combine=vote"))
    ]
    table = tables_of(tmp_path, *runs)["Combination of the weak masks"]
    header = next(line for line in table.splitlines() if "clip-glyph" in line)
    found = dict(zip(header.strip("|").split("|")[1:], cells_of(table, "vote"), strict=True))
    by_name = {name.strip(): cell.split(" ")[0] for name, cell in found.items()}
    assert by_name == {
        "clip-glyph · reviews · quick, 70 % sparse: accuracy (%)": "72.00",
        "clip-glyph · reviews · quick, 70 % sparse: FLOPs": "1.00",
        "minilm · reviews · quick, 70 % sparse: accuracy (%)": "70.00",
        "minilm · reviews · quick, 70 % sparse: FLOPs": "1.00",
        "minilm · reviews · quick, 90 % sparse: accuracy (%)": "71.00",
        "minilm · reviews · quick, 90 % sparse: FLOPs": "1.00",
    }


def test_schedules_stand_beside_the_presets_own(tmp_path):
    both = "isp.calibration=0.05 isp.growing=false"
    found = tables_of(tmp_path, *of_seeds("isp", *NEAR), *of_seeds("isp", *FAR, variant=both))
    table = found["Schedules"]
    assert cells_of(table, "the preset's") == ["81.00 ± 1.00 (n = 3)", "1.00"]
    name = f"{both}: the same time each round, and as many steps in all"
    assert cells_of(table, name) == ["61.33 ± 1.53 (n = 3) ▼", "1.00"]


def test_nothing_measured_is_said(tmp_path):
    chapter = ablations.chapter(ledger_of(tmp_path, result("isp")))
    assert chapter.tables == [] and "No results yet" in markdown([chapter])


def test_what_no_ablation_names_stands_beneath_the_preset_s_own(tmp_path):
    fp32 = {"variant": "training.precision=fp32"}
    found = tables_of(
        tmp_path,
        *(result(method, 0.8) for method in ("isp", "one_shot", "snip")),
        *(result(method, 0.9, **fp32) for method in ("dense", "isp", "one_shot")),
        result("dense", 0.9),
        result("isp", 0.7, variant="isp.combine=vote"),
    )
    assert list(found) == [
        "Combination of the weak masks",
        "Other changed settings: minilm · reviews · quick",
    ]
    table = found["Other changed settings: minilm · reviews · quick"]
    assert "* Full (training.precision=fp32), unpruned: 90.00\n" in table
    assert cells_of(table, "One-shot magnitude") == ["80.00"]
    assert cells_of(table, "One-shot magnitude (training.precision=fp32)") == ["90.00"]
    assert "SNIP" not in table and "vote" not in table and "**" not in table
