"""The ledger: nothing lost, nothing doubled, whoever writes at the same time."""

import json
import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import ledger_of, of_seeds, result
from instant_soup.errors import UserError
from instant_soup.reports import ledger

RESULTS = st.lists(
    st.builds(
        lambda method, value, seed, sparsity, variant, finished: result(
            method, value, seed=seed, target_sparsity=sparsity, variant=variant, finished=finished
        ),
        st.sampled_from(["dense", "random", "isp"]),
        st.floats(0, 1),
        st.integers(0, 2),
        st.sampled_from([0.5, 0.29, 0.7]),
        st.sampled_from(["", "isp.combine=vote", 'data.rows=[1,2] "a", b']),
        st.sampled_from(["", "2026-11-21T09:30:00+00:00", "2026-11-21T10:00:00+00:00"]),
    ),
    max_size=12,
)


def key_of(one: dict[str, Any]) -> tuple:
    return tuple(one[k] for k in ledger.KEY)


@settings(max_examples=40, deadline=None)
@given(first=RESULTS, second=RESULTS)
def test_merging_loses_nothing_and_repeats_nothing(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("ledger") / "results.csv"
    ledger.merge_ledger(path, first, "v1")
    merged = ledger.merge_ledger(path, second, "v2")
    # The latest stays; of those that finished together, the last one.
    by_time = sorted(first + second, key=lambda r: r["finished"])
    wanted = {key_of(r): r["test"]["accuracy"] for r in by_time}
    found = {tuple(row[k] for k in ledger.KEY): row["value"] for row in merged.to_dict("records")}
    assert found == wanted and len(merged) == len(wanted)  # every digit of the values, too
    before = path.read_bytes()
    again = ledger.merge_ledger(path, [], "v3")
    pd.testing.assert_frame_equal(again, ledger.read_ledger(path))
    ledger.merge_ledger(path, second[::-1][:1], "v2")  # the last one is what is there already
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["results.csv"]


def test_another_base_or_processor_takes_no_rows_place(tmp_path):
    merged = ledger_of(
        tmp_path,
        result("isp", base="aaaa"),
        result("isp", base="bbbb", processor="A"),
        result("isp", base="bbbb", processor="B"),
    )
    assert list(merged["base"] + merged["processor"]) == ["aaaa", "bbbbA", "bbbbB"]


def test_ledger_order_does_not_depend_on_arrival(tmp_path):
    some = [result(m, seed=s) for m in ("isp", "dense", "random") for s in (10, 9, 1)]
    ledger.merge_ledger(tmp_path / "a.csv", some, "v1")
    for one in reversed(some):
        ledger.merge_ledger(tmp_path / "b.csv", [one], "v1")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_ledger_keeps_later_rows_and_columns_it_does_not_know(tmp_path):
    path = tmp_path / "results.csv"
    ledger.merge_ledger(path, [result(value=0.5, finished="2026-11-21T10:00:00+00:00")], "v1")
    header, row = path.read_text().splitlines()
    path.write_text(f"{header},remark\n{row},by hand\n")
    kept = ledger.merge_ledger(path, [result(value=0.6), result(seed=1)], "v2")
    assert list(kept["value"]) == [0.5, 0.8]
    assert list(kept["remark"]) == ["by hand", ""]
    assert list(kept["code_version"]) == ["v1", "v2"]


def test_a_remembered_view_is_made_once_for_each_ledger(tmp_path):
    made = []

    @ledger.remembered
    def view(runs: pd.DataFrame) -> pd.DataFrame:
        made.append(len(runs))
        return runs.assign(one=1)

    first, second = ledger_of(tmp_path, result("isp")), ledger_of(tmp_path, result("lth"))
    assert view(first) is view(first) and list(view(first)["method"]) == ["isp"]
    assert set(view(second)["method"]) == {"isp", "lth"} and view(second) is view(second)
    assert list(view(first)["method"]) == ["isp"] and made == [1, 2, 1]


def test_a_row_from_a_clock_that_was_ahead_is_told(tmp_path, capsys):
    path = tmp_path / "results.csv"
    ahead, now = "2999-01-01T10:00:00+00:00", "2026-11-21T10:00:00+00:00"
    ledger.merge_ledger(path, [result(value=0.5, finished=ahead)], "v1")
    assert capsys.readouterr().err == ""
    kept = ledger.merge_ledger(path, [result(value=0.6, finished=now)], "v1")
    assert list(kept["value"]) == [0.5]
    warning = capsys.readouterr().err
    assert f"finished at {ahead}, which is still to come" in warning and "isp, 0.7, 0" in warning
    path.unlink()
    ledger.merge_ledger(path, [result(value=0.5, finished="2026-11-22T10:00:00+00:00")], "v1")
    ledger.merge_ledger(path, [result(value=0.6, finished=now)], "v1")
    assert capsys.readouterr().err == ""  # an older result, as a checkout has many


def test_ledger_with_git_conflict_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    ledger_of(tmp_path, result())
    path.write_text(path.read_text() + "<<<<<<< HEAD\n")
    with pytest.raises(UserError, match="not a ledger"):
        ledger_of(tmp_path, result(seed=1))
    assert path.read_text().endswith("<<<<<<< HEAD\n")


def lines_of(path: Path, *rows: dict[str, Any]) -> list[str]:
    """A ledger's header, and its rows as text, each written into a file of its own."""
    texts = []
    for number, row in enumerate(rows):
        ledger.merge_ledger(path.with_name(f"{number}.csv"), [row], "v1")
        texts.append(path.with_name(f"{number}.csv").read_text().splitlines()[1])
    return [",".join(ledger.COLUMNS), *texts]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_of_two_rows_with_one_key_the_later_stays_and_that_is_said(tmp_path, capsys, order):
    """A merge conflict that was resolved by keeping both."""
    path = tmp_path / "results.csv"
    early, late = (f"2026-11-2{day}T10:00:00+00:00" for day in (1, 2))
    header, *rows = lines_of(path, result(value=0.5, finished=early),
                             result(value=0.6, finished=late))  # fmt: skip
    path.write_text("\n".join([header, *(rows[i - 1] for i in order)]) + "\n")
    assert list(ledger.read_ledger(path)["value"]) == [0.6]
    warning = capsys.readouterr().err
    assert f"{path}: line 3: a second row of" in warning and "isp, 0.7, 0" in warning
    assert list(ledger.merge_ledger(path, [], "v1")["value"]) == [0.6]
    assert len(path.read_text().splitlines()) == 2
    capsys.readouterr()
    path.write_text("\n".join([header, rows[0], rows[0]]) + "\n")
    assert len(ledger.read_ledger(path)) == 1 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("column", "word", "allowed"),
    [
        ("value", "good", "a number"),
        ("flops", "1,5e9", "a number"),
        ("seed", "1.5", "a whole number"),
        ("seed", "", "a whole number"),
        ("target_sparsity", "70 %", "a number from 0 to 1"),
        ("target_sparsity", "nan", "a number from 0 to 1"),
        ("target_sparsity", "70", "a number from 0 to 1"),
        ("finished", "yesterday", "a time in UTC"),
        ("finished", "2026-11-28T10:00:00+09:00", "a time in UTC"),
    ],
)
def test_a_word_for_a_number_names_line_and_column_and_nothing_is_written(
    tmp_path, column, word, allowed
):
    path = tmp_path / "results.csv"
    ledger_of(tmp_path, result(seed=1), result(seed=2))
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[1, column] = word
    table.to_csv(path, index=False)
    before = path.read_bytes()
    for call in (lambda: ledger.read_ledger(path), lambda: ledger_of(tmp_path, result(seed=3))):
        with pytest.raises(UserError, match=f"allowed: {allowed}") as caught:
            call()
        assert f"{path}: line 3: {column}: {word!r} is not allowed" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model,dataset\n\xff\xfe,b\n", "line 2 is not UTF-8"),
        ("model\nä\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"model,model\na,b\n", "not a ledger"),
        (b'model,dataset\n"a', "not a ledger"),
        (b"a" * 200_000, "not a ledger"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    for call in (lambda: ledger.read_ledger(path), lambda: ledger_of(tmp_path, result())):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_ledger_out_of_a_spreadsheet_is_read(tmp_path):
    """It begins with a mark, and its lines end otherwise."""
    path = tmp_path / "results.csv"
    before = ledger_of(tmp_path, result(seed=1), result(seed=2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    pd.testing.assert_frame_equal(ledger.read_ledger(path), before)


@pytest.mark.parametrize(
    "change",
    [
        {"cost": 3},
        {"cost": {"steps": "many"}},
        {"test": {"accuracy": "good"}},
        {"test": ["accuracy"]},
        {"seed": "first"},
        {"target_sparsity": None},
        {"variant": None},
        {"metric": ["accuracy"]},
        {"zero_shot": {"f1": 0.5}},
        {"drawn": {"epoch": 1}},
        {"finished": "noon"},
    ],
)
def test_a_result_with_words_for_numbers_never_gets_into_the_ledger(tmp_path, change):
    with pytest.raises(UserError, match=r"isp\.json: "):
        ledger.check_result({**result(), **change}, "isp.json")


FORK = multiprocessing.get_context("fork")
FORK = multiprocessing.get_context("fork")
EQUAL = range(1000, 1005)  # seeds that every process merges


def merge_many(path: Path, together: Any, seeds: range) -> None:
    together.wait()
    for seed in seeds:
        ledger.merge_ledger(path, [result(seed=seed), *of_seeds("snip", 0.5, 0.6)], "v1")
        ledger.merge_ledger(path, [result(seed=equal) for equal in EQUAL], "v1")


def die_in_the_middle(path: Path, together: Any) -> None:
    """Merge a row, but be killed when half of the new ledger is written."""

    def write_half(file: Path, text: str) -> None:
        with open(file, "w") as opened:
            opened.write(text[: len(text) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    Path.write_text = write_half  # type: ignore[assignment] # this process is about to end
    together.wait()
    ledger.merge_ledger(path, [result(seed=77)], "v1")


def watch(path: Path, workers: list[Any]) -> None:
    """Read the ledger until the workers have ended; at no moment may it be less than whole."""
    rows = 0
    while any(worker.is_alive() for worker in workers):
        if path.exists():
            now = len(ledger.read_ledger(path))
            assert now >= rows
            rows = now


def test_four_processes_at_once_lose_and_double_nothing(tmp_path):
    path = tmp_path / "results.csv"
    together = FORK.Barrier(4)
    shares = [range(start, start + 10) for start in range(0, 40, 10)]
    workers = [FORK.Process(target=merge_many, args=(path, together, seeds)) for seeds in shares]
    for worker in workers:
        worker.start()
    watch(path, workers)
    assert [worker.exitcode for worker in workers] == [0] * 4
    merged = ledger.read_ledger(path)
    assert list(merged[merged["method"] == "isp"]["seed"]) == [*range(40), *EQUAL]
    assert list(merged[merged["method"] == "snip"]["value"]) == [0.5, 0.6]
    assert len(path.read_text().splitlines()) == 1 + 40 + len(EQUAL) + 2
    assert os.listdir(tmp_path) == ["results.csv"]


def test_a_process_killed_in_the_middle_harms_nobody(tmp_path):
    path = tmp_path / "results.csv"
    ledger_of(tmp_path, result(seed=500))
    together = FORK.Barrier(4)
    shares = [range(start, start + 10) for start in range(0, 30, 10)]
    workers = [FORK.Process(target=merge_many, args=(path, together, seeds)) for seeds in shares]
    killed = FORK.Process(target=die_in_the_middle, args=(path, together))
    for worker in (killed, *workers):
        worker.start()
    watch(path, [killed, *workers])
    assert killed.exitcode == -signal.SIGKILL
    assert [worker.exitcode for worker in workers] == [0] * 3
    ledger_of(tmp_path, result(seed=77))  # once more, and it is there
    merged = ledger.read_ledger(path)
    seeds = sorted(merged[merged["method"] == "isp"]["seed"])
    assert seeds == [*range(30), 77, 500, *EQUAL]
    assert not list(tmp_path.glob(".*.lock"))


# Rows and results from before a column's name changed


def test_ledgers_and_results_with_former_names_keep_their_numbers(tmp_path):
    path = tmp_path / "results.csv"
    ledger_of(tmp_path, result(seed=1), result(seed=2))
    lines = [line.split(",") for line in path.read_text().splitlines()]
    names = ["look_ahead_steps" if name == "search_steps" else name for name in lines[0]]
    memory = names.index("peak_memory")
    former = [line[:memory] + line[memory + 1 :] for line in [names, *lines[1:]]]
    path.write_text("\n".join(map(",".join, former)) + "\n")

    assert list(ledger.read_ledger(path)["search_steps"]) == [110, 110]
    assert ledger.read_ledger(path)["peak_memory"].isna().all()
    old = result(seed=3)
    old["cost"]["look_ahead_steps"] = old["cost"].pop("search_steps") + 1
    del old["cost"]["peak_memory"]
    read = ledger.check_result(old, "isp.json")
    merged = ledger.merge_ledger(path, [read], "v2")
    assert list(merged["search_steps"]) == [110, 110, 111]
    assert list(merged.columns) == ledger.COLUMNS and "look_ahead" not in path.read_text()


def test_equal_numbers_make_equal_variants_also_in_old_ledgers(tmp_path):
    old = "isp.learning_rate_range=[0.1,10.0] training.epochs=2.0 data.path=v1.0/x"
    path = tmp_path / "results.csv"
    ledger_of(tmp_path, result(variant=old.replace("2.0", "2")))
    path.write_text(path.read_text().replace("=2 ", "=2.0 "))
    new = "isp.learning_rate_range=[0.1,10] training.epochs=2 data.path=v1.0/x"
    assert list(ledger.read_ledger(path)["variant"]) == [new]
    again = ledger.check_result(result(variant=old), "isp.json")
    assert len(ledger.merge_ledger(path, [again], "v2")) == 1


# Results


def test_read_results_names_a_damaged_file(tmp_path):
    (tmp_path / "isp.json").write_text(json.dumps(result()))
    (tmp_path / "dense.json").write_text('{"method": "dense"}')
    assert ledger.read_results(tmp_path, ["isp"])[0]["method"] == "isp"
    with pytest.raises(UserError, match=r"dense\.json: not a result file \(model.*cost"):
        ledger.read_results(tmp_path, ["isp", "dense"])
    with pytest.raises(UserError, match=r"snip\.json"):
        ledger.read_results(tmp_path, ["snip"])


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_results_of_experiments(tmp_path, capsys):
    assert ledger.results_of_experiments(tmp_path / "nowhere") == []
    git(tmp_path, "init", "-q")
    assert ledger.results_of_experiments(tmp_path) == []
    folder = tmp_path / "reports/results"
    folder.mkdir(parents=True)

    def commit(**files: str) -> str:
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
        return git(tmp_path, "rev-parse", "HEAD")

    base = commit(dense=json.dumps(result("dense")))
    place = f"refs/exps/{base[:2]}/{base[2:]}"
    first = commit(isp=json.dumps(result(seed=1)), broken="{not json", other='{"a": 1}')
    git(tmp_path, "update-ref", f"{place}/brave-soup", first)
    second = commit(isp=json.dumps(result(seed=2)))
    git(tmp_path, "update-ref", f"{place}/calm-soup", second)
    stray = commit(isp=json.dumps(result(seed=3)))
    for ref in ("stash", "exec/EXEC_HEAD", "celery/stash", "apply/ORIG_HEAD"):
        git(tmp_path, "update-ref", f"refs/exps/{ref}", stray)

    found = ledger.results_of_experiments(tmp_path)
    assert sorted((r["method"], r["seed"]) for r in found) == [
        ("dense", 0), ("isp", 1), ("isp", 2),
    ]  # fmt: skip
    assert {r["code_version"] for r in found} == {base[:12]}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert any("calm-soup:reports/results/broken.json: skipped" in line for line in warnings)


def test_a_repository_that_git_does_not_read_is_told(tmp_path, capsys):
    (tmp_path / ".git").mkdir()  # as where the checkout is another user's: Git ends with a reason
    assert ledger.results_of_experiments(tmp_path) == []
    warning = capsys.readouterr().err
    assert warning.startswith("warning: experiments are not read: git for-each-ref: fatal: ")


def test_zero_shot_is_one_row_of_what_it_depends_on():
    """Of the settings that a zero-shot network does not see, none makes a row of its own."""
    variant = "data.max_length=9 isp.denoisers=2 training.epochs=3 training.precision=fp32"
    dense = result("dense", seed=2, variant=variant, validation=0.75)
    dense["zero_shot"] = {"accuracy": 0.25}
    zero_shot, same = ledger.with_zero_shot([dense])
    assert same == dense
    assert (zero_shot["method"], zero_shot["seed"]) == ("zero_shot", 0)
    assert zero_shot["variant"] == "data.max_length=9 training.precision=fp32"
    assert zero_shot["test"] == {"accuracy": 0.25}
    assert not any(zero_shot["cost"].values())
    assert zero_shot["validation"] is None  # only the trained network was validated
