"""Tables of results and of cost, on invented results."""

import re

import pandas as pd
import pytest

from helpers import cells_of, ledger_of, of_seeds, result
from instant_soup.config.fields import settings_of
from instant_soup.config.sections import Training
from instant_soup.methods import registry
from instant_soup.methods.base import keys_of
from instant_soup.reports import (
    ablations,
    accuracy_tables,
    cost_tables,
    figures,
    head_to_head,
    ledger,
)
from instant_soup.reports.render import markdown
from instant_soup.reports.results import (
    METHOD_NAMES,
    UNPRUNED,
    costs,
    label,
    preset_rows,
    row_order,
    short,
    terminal_table,
)
from instant_soup.reports.tables import all_chapters, write_tables


def results_of(runs: pd.DataFrame) -> str:
    return markdown(accuracy_tables.chapters(runs))


def cost_of(runs: pd.DataFrame) -> str:
    return markdown([cost_tables.chapter(runs)])


def test_mean_and_standard_deviation(tmp_path):
    runs = of_seeds("isp", 0.80, 0.82, 0.84)
    table = results_of(ledger_of(tmp_path, *runs))
    assert cells_of(table, "ISP") == ["82.00 ± 2.00"]
    assert "(n = 3)" in table and "error bar" not in table


def test_missing_cells_dense_row_and_order(tmp_path):
    table = results_of(
        ledger_of(
            tmp_path,
            result("my_method", 0.7),
            result("isp", 0.8, variant="isp.combine=vote"),
            result("isp", 0.81),
            result("isp", 0.83, target_sparsity=0.5),
            result("one_shot", 0.75),
            result("one_shot", 0.77, seed=1),
            result("dense", 0.9),
        )
    )
    assert "| method | 50 % sparse | 70 % sparse |" in table
    assert table.count("Full (dense)") == 1 and "* Full (dense), unpruned: 90.00 (n = 1)\n" in table
    assert cells_of(table, "One-shot magnitude") == ["–", "76.00 ± 1.41 (n = 2)"]
    assert cells_of(table, "ISP") == ["83.00 (n = 1)", "**81.00 (n = 1)**"]
    rows = re.findall(r"^\| (\w[^|]*) \| [^-]", table, flags=re.M)[1:]
    assert rows == ["One-shot magnitude", "ISP", "my_method"]  # variants are ablations
    assert "Single runs (n = 1) have no deviation" in table


def test_bold_is_the_best_sparse_method_with_a_competitor(tmp_path):
    runs = [result("dense", 0.9), result("isp", 0.8)]
    alone = results_of(ledger_of(tmp_path, *runs))
    assert "**" not in alone and "Bold" not in alone
    tie = results_of(ledger_of(tmp_path, result("random", 0.8)))
    assert cells_of(tie, "ISP") == cells_of(tie, "Random") == ["**80.00**"]
    beaten = results_of(ledger_of(tmp_path, result("one_shot", 0.81)))
    assert beaten.count("**") == 2 and cells_of(beaten, "One-shot magnitude") == ["**81.00**"]


@pytest.mark.parametrize(
    ("dataset", "metric", "dense", "silent"),
    [
        ("wnli@local", "accuracy", 0.27, True),
        ("wnli", "accuracy", 0.5, True),
        ("wnli", "accuracy", 0.56, False),
        ("mnli", "accuracy", 0.35, False),
        ("mnli", "accuracy", 0.33, True),
        ("mnist", "accuracy", 0.1, True),
        ("mnist", "accuracy", 0.11, False),
        ("cola", "matthews", 0.0, True),
        ("cola", "matthews", 0.01, False),
        ("stsb", "pearson", -0.1, True),
        ("local:mine", "accuracy", 0.01, False),  # of how many classes is not known
    ],
)
def test_where_the_dense_network_guesses_no_row_is_best_or_better(
    tmp_path, dataset, metric, dense, silent
):
    own = {"dataset": dataset, "metric": metric}
    shared = {**own, "variant": "training.epochs=4"}
    runs = ledger_of(
        tmp_path,
        *of_seeds("dense", dense, dense + 0.001, dense - 0.001, **shared),
        *of_seeds("isp", 0.90, 0.91, 0.92, **shared),
        *of_seeds("lth", 0.5, 0.52, 0.53, **shared),
    )
    table = results_of(runs)
    against = markdown([head_to_head.chapter(runs)])
    assert ("**" in table) != silent and ("▲ |" in against) != silent
    for text in (table, against):
        assert ("no better than guessing" in text) == silent
    assert cells_of(table, "ISP") == ["91.00 ± 1.00" if silent else "**91.00 ± 1.00 ▲**"]


def test_marks_need_a_dense_network_that_has_learned(tmp_path):
    own = {"dataset": "wnli", "preset": "quick"}
    runs = [of_seeds("isp", 0.60, 0.61, 0.62, **own), of_seeds("lth", 0.5, 0.52, 0.53, **own)]
    shown = []
    for dense in (0.3, 0.57):
        every = [*of_seeds("dense", dense, dense, dense, **own), *runs[0], *runs[1]]
        shown.append(results_of(ledger_of(tmp_path / str(dense), *every)))
    assert "61.00 ± 1.00 ▲" not in shown[0] and "no better than guessing" in shown[0]
    assert "**61.00 ± 1.00 ▲**" in shown[1] and "no better than guessing" not in shown[1]


def test_searches_that_never_settled_are_called_so(tmp_path):
    def drawn(*epochs: float, settled: bool, sparsity: float) -> list:
        return [
            result("early_bird", seed=seed, target_sparsity=sparsity,
                   drawn={"epoch": epoch, "settled": settled})
            for seed, epoch in enumerate(epochs)
        ]  # fmt: skip

    never = [*drawn(4, 4, settled=False, sparsity=0.7), *drawn(1, 2, settled=True, sparsity=0.9)]
    at_times = drawn(1.5, settled=True, sparsity=0.5)
    runs = ledger_of(tmp_path, result("dense"), *never, *at_times)
    took = "EarlyBird took its masks after these epochs, by seed: at 50 % sparse 1.5; "
    unsettled = " The masks of EarlyBird did not settle at 70 % sparse in 2 of 2 runs: there the"
    assert f"{took}at 70 % sparse 4; at 90 % sparse 1, 2.{unsettled}" in cost_of(runs)
    assert unsettled in results_of(runs) and took not in results_of(runs)


def test_sections_units_and_a_diverged_run(tmp_path):
    runs = ledger_of(
        tmp_path,
        result(value=0.7, dataset="rating", metric="pearson"),
        result(value=1.25, dataset="text", metric="perplexity"),
        result(value=float("nan"), dataset="x"),
        result(value=0.5, dataset="x", seed=1),
    )
    table = results_of(runs)
    assert table.count("\n## ") == 3
    assert "Test pearson (%)" in table and "| ISP | 70.00 |" in table
    assert "Test perplexity," in table and "| ISP | 1.25 |" in table
    assert "| ISP | nan ± nan |" in table


def test_cost_is_relative_to_dense_of_the_same_seed_and_training(tmp_path):
    longer = {"steps": 440, "search_steps": 0, "flops": 2.4e13}
    longer |= {"sparse_flops": 2.4e13, "seconds": 1.0}
    runs = ledger_of(
        tmp_path,
        result("dense"),
        result("dense", variant="training.epochs=4", cost=longer),
        result("isp", variant="isp.combine=vote"),
        result("isp", variant="training.epochs=4 isp.combine=vote"),
        result("isp", seed=1),
    )
    table = cost_of(runs)
    assert "training FLOPs (TFLOP)" in table and "combine" not in table  # with the preset's own
    common = ["70 %", "220", "110", "18.0", "9.00", "88.2", "1.50"]
    assert cells_of(table, "ISP") == [*common, "–", "–", "1"]
    every = costs(runs).set_index(["method", "variant"])
    for variant, ratio in (("", 1.5), ("training.epochs=4 ", 0.75)):
        row = every.loc["isp", f"{variant}isp.combine=vote"]
        assert list(row[["steps", "search_steps", "flops"]]) == [220, 110, 1.8e13]
        assert list(row[["steps_vs_dense", "flops_vs_dense", "n"]]) == [ratio, ratio, 1]


def test_cost_of_a_method_with_settings_of_its_own_and_of_unknown_memory(tmp_path):
    cost = {"steps": 220, "search_steps": 660, "flops": 4.8e13, "sparse_flops": 2e13, "seconds": 1}
    table = cost_of(
        ledger_of(
            tmp_path,
            result("dense", zero_shot={"accuracy": 0.1}, variant="training.epochs=9"),
            result("lth", variant="training.epochs=9 lth.rounds=4", cost=cost),
        )
    )
    lth = ["70 %", "220", "660", "48.0", "20.0", "1.0", "–", "4.00", "4.00", "1"]
    assert cells_of(table, "LTH (lth.rounds=4)") == lth
    assert "Zero-shot" not in table and " · training.epochs=9\n" in table


def test_every_method_has_a_name_and_the_paper_s_come_in_its_order():
    assert set(METHOD_NAMES) == {"zero_shot", *registry.methods()}
    assert len(set(METHOD_NAMES.values())) == len(METHOD_NAMES)
    paper = ["dense", "random", "one_shot", "progressive", "early_bird", "snip", "grasp", "lth"]
    paper += ["lth_rewind", "lottery_pool", "isp"]
    assert sorted(reversed(paper), key=row_order) == paper


def test_written_tables(tmp_path):
    runs = ledger_of(tmp_path, result(value=1 / 3))
    chapters = all_chapters(runs)
    written = write_tables(tmp_path / "tables", runs, chapters)
    kinds = ("md", "tex", "csv")
    assert [p.name for p in written] == [f"{name}.{kind}" for name in chapters for kind in kinds]
    none = ledger.merge_ledger(tmp_path / "e", [], "v")
    for path in write_tables(tmp_path / "empty", none, all_chapters(none)):
        if path.suffix == ".md" and "table" not in path.name:  # those have the paper's numbers
            assert "No results yet" in path.read_text()
    assert ",0.3333333333333333," in (tmp_path / "tables/results.csv").read_text()


def test_terminal_table_without_terminal(capsys):
    long_variant = "training.learning_rate=0.0001 isp.learning_rate_range=[0.00001,0.0005] " * 2
    terminal_table([result("isp"), result("dense"), result("isp", variant=long_variant)])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100 and "\x1b" not in shown
    assert re.search(r"ISP +│ +70\.00 % │ +80\.00 │ +330 │ +1\.50 │ +88\.2", shown)
    assert shown.index("Full (dense)") < shown.index("ISP") and "reports/tables/results.md" in shown


def test_settings_that_all_rows_share_stand_in_the_title_once(capsys):
    epochs = "training.epochs=9"
    rows = [result("dense", variant=epochs), result("isp", variant=f"{epochs} isp.look_ahead=2")]
    terminal_table(rows)
    shown = capsys.readouterr().out
    assert shown.count(epochs) == 1 and f"seed 0 · {epochs}" in shown
    assert "│ Full (dense) " in shown and "│ ISP (look_ahead=2) " in shown
    terminal_table([rows[1]])
    assert "│ ISP  " in capsys.readouterr().out


def test_figures_and_bold_are_of_the_presets_own_settings_where_there_are_any(tmp_path):
    """The best of many variants is so by chance; but a study of one's own has nothing else."""
    ledger = ledger_of(
        tmp_path,
        result("dense", 0.9), result("isp", 0.7), result("one_shot", 0.6),
        result("isp", 0.8, variant="isp.combine=vote"),
        result("isp", 0.5, variant="training.epochs=9", dataset="mine"),
        result("zero_shot", 0.1, dataset="mine"),
    )  # fmt: skip
    shown = preset_rows(ledger)
    assert sorted(shown["value"]) == [0.1, 0.5, 0.6, 0.7, 0.9]
    text = results_of(ledger)
    text, of_mine = sorted(text.split("## ")[1:], key=lambda table: "· mine ·" in table)
    assert of_mine.splitlines()[0].endswith(" · training.epochs=9")
    assert cells_of(of_mine, "ISP") == ["50.00"] and "Zero-shot, unpruned: 10.00" in of_mine
    assert "vote" not in text and "**70.00**" in text


def test_every_kind_of_row_can_be_shown(tmp_path):
    """A row that no table or figure could take would fail a grid's cell at its very end."""
    variants = ["", *ablations.SCHEDULES, "isp.denoisers=0", "data.train_rows=9 isp.combine=vote"]
    unpruned = {"target_sparsity": 0.0, "sparsity": 0.0}
    rows = [
        result(method, 0.5 + 0.1 * seed, seed=seed, variant=variant, family=family, model=family,
               **(unpruned if method in UNPRUNED else {"target_sparsity": sparsity}))
        for method in [*METHOD_NAMES, "their_own"]
        for variant in variants
        for family in ("bert", "clip")
        for seed in (0, 1)
        for sparsity in ((0.7,) if variant or seed else (0.5, 0.7, 0.9))
    ]  # fmt: skip
    ledger = ledger_of(tmp_path, *rows)
    for path in write_tables(tmp_path, ledger, all_chapters(ledger)):
        assert path.stat().st_size, path
    for name in figures.OF_LEDGER:
        getattr(figures, name.removesuffix(".png"))(ledger, tmp_path / name)


def test_rows_with_a_teacher_are_in_tables_of_their_own(tmp_path):
    taught = "training.teacher=dense training.temperature=4.0"
    runs = ledger_of(
        tmp_path,
        result("dense", 0.9),
        result("isp", 0.80),
        result("one_shot", 0.70),
        result("dense", 0.9, variant="training.teacher=dense"),
        result("isp", 0.85, variant="training.teacher=dense"),
        result("isp", 0.86, variant=f"isp.combine=vote {taught}"),
        result("one_shot", 0.88, variant="training.teacher=dense"),
    )
    (chapter,) = accuracy_tables.chapters(runs)
    for tables in (chapter.tables, cost_tables.chapter(runs).tables):
        plain, of_teacher = tables
        names = ["Full (dense)", "One-shot magnitude", "ISP"]
        assert [name for name, _ in [*plain.unpruned, *plain.rows]] == names
        assert "teacher" not in plain.heading and "learnt" not in plain.caption
        assert of_teacher.heading == f"{plain.heading} · training.teacher=dense"
        assert (
            "All rows except Full (dense) learnt from the network of that row" in of_teacher.caption
        )
        assert [name for name, _ in [*of_teacher.unpruned, *of_teacher.rows]] == names
    (changed,) = ablations.chapter(runs).tables
    assert changed.heading == f"Other changed settings: {of_teacher.heading}"
    assert [(name, cells[0].text) for name, cells in changed.rows] == [
        ("ISP", "85.00"),
        ("ISP (combine=vote, training.temperature=4.0)", "86.00"),
    ]
    best = [{name for name, cells in table.rows if cells[0].bold} for table in chapter.tables]
    assert best == [{"ISP"}, {"One-shot magnitude"}]
    figures.accuracy_vs_sparsity(runs, tmp_path / "figure.png")


def test_a_name_says_what_differs_once_and_no_two_rows_have_the_same():
    assert label("isp_plus") == "ISP+ (Fisher, no denoisers)"
    assert label("isp_plus", "isp_plus.cycles=2") == "ISP+ (cycles=2)"
    # Settings of all rows, and of another row that this one is made of, keep their sections.
    shared = "training.epochs=4 isp.combine=vote"
    assert label("isp", shared) == "ISP (training.epochs=4, combine=vote)"
    assert "(training.epochs=4, isp.combine=vote)" in label("random_init", shared)
    assert label("theirs", "theirs.rate=0.1") == "theirs (theirs.rate=0.1)"
    names = [*METHOD_NAMES]
    assert len({label(name) for name in names}) == len({short(name) for name in names})
    for name, method in registry.methods().items():
        keys = [*keys_of(method).values(), *(f"training.{key}" for key in settings_of(Training))]
        assert len({label(name, f"{key}=1") for key in keys}) == len(keys)


def test_rows_retrained_in_part_are_in_tables_of_their_own(tmp_path):
    runs = ledger_of(
        tmp_path,
        result("dense", 0.9),
        result("isp", 0.80),
        result("dense", 0.9, variant="training.retrain=mask_lora"),
        result("isp", 0.85, variant="training.retrain=mask_lora"),
        result("isp", 0.86, variant="training.retrain=mask_lora training.lora_rank=4"),
        result("dense", 0.9, variant="training.teacher=dense training.retrain=mask_lora"),
        result("isp", 0.87, variant="training.teacher=dense training.retrain=mask_lora"),
    )
    (chapter,) = accuracy_tables.chapters(runs)
    whole, part, both = chapter.tables
    assert [name for name, _ in [*whole.unpruned, *whole.rows]] == ["Full (dense)", "ISP"]
    assert "After the last mask" not in whole.caption and "After the last mask" in part.caption
    assert part.heading == f"{whole.heading} · training.retrain=mask_lora"
    assert [name for name, _ in [*part.unpruned, *part.rows]] == ["Full (dense)", "ISP"]
    (changed,) = ablations.chapter(runs).tables
    assert changed.heading == f"Other changed settings: {part.heading}"
    assert [name for name, _ in changed.rows] == ["ISP", "ISP (training.lora_rank=4)"]
    assert both.heading.endswith("training.teacher=dense training.retrain=mask_lora")
    assert "learnt from" in both.caption and "After the last mask" in both.caption
