"""The command `instant-soup`: what it prints and writes, and how it fails."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers import ROOT
from instant_soup import cli
from instant_soup.files import read_json, read_yaml
from instant_soup.sparsity import masks

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")

SOURCES = str(ROOT / "src")
COMMANDS = ("inspect", "compare", "export", "apply", "oneshot", "evaluate")


@pytest.fixture
def run(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of texts, which is where we are."""
    monkeypatch.chdir(text_run)
    return text_run


@pytest.fixture
def call(capsys: pytest.CaptureFixture) -> Any:
    """Call the command; what it printed, after checking its exit status."""

    def caller(*arguments: object, status: int = 0) -> str:
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == status
        printed = capsys.readouterr()
        if status == 0:
            return printed.out
        assert printed.out == ""
        return printed.err

    return caller


def refused(call: Any, *arguments: object) -> str:
    """The one line with which a command fails."""
    message = call(*arguments, status=1)
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


# inspect


def test_inspect_shows_a_run_a_mask_and_an_export_alike(run: Path, call: Any, tmp_path: Path):
    call("export", "one_shot", "--to", tmp_path / "ticket")
    found = [
        json.loads(call("inspect", path, "--json"))
        for path in (
            "models/retrained/one_shot",
            "models/retrained/one_shot/mask.safetensors",
            tmp_path / "ticket",
            tmp_path / "ticket/compact.safetensors",
        )
    ]
    result = read_json("reports/results/one_shot.json")
    for numbers in found:
        assert numbers["sparsity"] == result["sparsity"]
        assert numbers["layers"] == [
            {**entry, "name": layer["name"], "sparsity": layer["sparsity"]}
            for entry, layer in zip(numbers["layers"], result["layer_sparsity"], strict=True)
        ]
    assert "near_zero" not in found[0] and found[2]["near_zero"] == found[3]["near_zero"]
    text = call("inspect", tmp_path / "ticket")
    assert f"{result['pruned_weights']:,} of {result['prunable_weights']:,} weights" in text


def test_inspect_draws_a_picture(run: Path, call: Any, tmp_path: Path):
    call("inspect", "models/retrained/one_shot", "--plot", tmp_path / "sparsity.png")
    assert Image.open(tmp_path / "sparsity.png").format == "PNG"


def test_inspect_counts_near_zero_weights_below_the_threshold_given(call: Any, tmp_path: Path):
    save_file({"layer.0.w": torch.tensor([[0.0, 1e-4, 0.3]])}, tmp_path / "w.safetensors")
    for options, expected in (((), 1), (("--near-zero", 0.5), 2)):
        numbers = json.loads(call("inspect", tmp_path / "w.safetensors", "--json", *options))
        assert (numbers["near_zero"], numbers["kept"]) == (expected, 2)
    assert numbers["threshold"] == 0.5
    for value in (-1, "nan", "inf"):
        line = refused(call, "inspect", tmp_path / "w.safetensors", "--near-zero", value)
        assert f"--near-zero: {value} is not allowed; allowed: a finite number from 0" in line


def test_a_checkpoint_file_is_counted_by_the_mask_beside_it(run: Path, call: Any, tmp_path: Path):
    call("export", "one_shot", "--to", tmp_path / "ticket")
    mask = masks.load(tmp_path / "ticket/mask.safetensors")
    first = dict(list(mask.items())[:1])
    masks.save(tmp_path / "ticket/mask.safetensors", first)
    for path in (tmp_path / "ticket", tmp_path / "ticket/model.safetensors"):
        numbers = json.loads(call("inspect", path, "--json"))
        assert [matrix["name"] for matrix in numbers["matrices"]] == list(first)
    masks.save(tmp_path / "ticket/mask.safetensors", {"other.weight": mask[next(iter(first))]})
    assert "a mask of another model" in refused(call, "inspect", tmp_path / "ticket")


# compare


def test_compare_tells_how_masks_agree(run: Path, call: Any):
    retrained = "models/retrained/one_shot"
    ticket = "models/tickets/one_shot/found/mask.safetensors"
    numbers = json.loads(call("compare", retrained, ticket, "--json"))
    assert (numbers["jaccard"], numbers["hamming"]) == (1.0, 0.0)
    dense = json.loads(call("compare", retrained, "models/start/mask.safetensors", "--json"))
    assert dense["overlap"] == 1.0 and dense["jaccard"] == pytest.approx(0.4, abs=1e-4)
    assert len(dense["layers"]) == 2
    text = call("compare", retrained, ticket)
    assert "Hamming" in text and "│ all " in text


# export, apply, evaluate


def test_export_writes_where_the_stage_does_or_where_it_is_told(run: Path, call: Any, tmp_path):
    text = call("export", "one_shot")
    assert text.startswith("models/exported/one_shot: one_shot of local:tiny-bert")
    assert (run / "models/exported/one_shot/config.json").exists()
    call("export", "one_shot")  # again, in the place of the former
    for dtype in ("fp32", "bf16"):
        assert "--to: missing" in refused(call, "export", "one_shot", "--dtype", dtype)
    to = tmp_path / "new"
    ticket = json.loads(call("export", "one_shot", "--dtype", "bf16", "--to", to, "--json"))
    assert ticket == {"folder": str(to), **read_json(to / "ticket.json")}
    kinds = {w.dtype for w in load_file(tmp_path / "new/model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert read_json(tmp_path / "new/ticket.json")["dtype"] == "bf16"


def test_no_folder_of_others_is_overwritten(run: Path, call: Any, tmp_path: Path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mine.txt").write_text("precious")
    mask = run / "models/retrained/one_shot/mask.safetensors"
    for command in (("export", "one_shot"), ("apply", mask, run / "models/base")):
        for folder in (tmp_path / "letters", tmp_path / "letters/mine.txt"):
            assert "there already; name a new folder" in refused(call, *command, "--to", folder)
    assert (tmp_path / "letters/mine.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    call("export", "one_shot", "--to", tmp_path / "empty")


def test_where_no_folder_can_be_is_said_before_any_work(
    run: Path, call: Any, tmp_path, monkeypatch
):
    mask, model = run / "models/retrained/one_shot", run / "models/base"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    cases = [
        (".", "the folder where you are"),
        ("", "the folder where you are"),
        (tmp_path / "here", "the folder where you are"),
        ("new/..", "the folder where you are"),
        ("..", "there already"),
        (tmp_path / "link", "is a link"),
        (tmp_path / "dangling", "is a link"),
        (tmp_path / "file/new", "is no folder"),
        ("a\0b", "embedded null"),
        ("x" * 300, "name too long"),
        ("~nosuchuser/new", "no such user"),
    ]
    monkeypatch.setattr("instant_soup.tickets.weights.new_folder", None)
    monkeypatch.setattr("instant_soup.tickets.export.new_folder", None)
    for to, words in cases:
        for command in (("apply", mask, model), ("export", "one_shot")):
            assert words in refused(call, *command, "--to", to), to
    assert {path.name for path in tmp_path.iterdir()} == {
        *("here", "empty", "link", "dangling", "file")
    }


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "~nosuchuser"])
def test_what_can_be_no_path_is_said_in_one_line(run: Path, call: Any, tmp_path: Path, path: str):
    call("export", "one_shot", "--to", tmp_path / "ticket")
    ticket = tmp_path / "ticket"
    for arguments in (
        ("inspect", path),
        ("inspect", ticket, "--plot", path),
        ("compare", ticket, path),
        ("apply", path, ticket, "--to", tmp_path / "out"),
        ("evaluate", path, "sst2"),
        ("evaluate", ticket, f"local:{path}"),
        ("evaluate", ticket, "sst2", "--path", path),
    ):
        assert "cannot be a path" in refused(call, *arguments), arguments


def test_apply_prunes_the_base_model(run: Path, call: Any, tmp_path: Path):
    mask = masks.load(run / "models/retrained/one_shot/mask.safetensors")
    text = call("apply", "models/retrained/one_shot", "models/base", "--to", tmp_path / "pruned")
    assert f"60.00 % of {masks.count(mask)[1]:,} prunable weights are zero" in text
    again = ("apply", "models/retrained/one_shot", "models/base", "--to", tmp_path / "again")
    found = json.loads(call(*again, "--json"))
    assert found["weights"] == masks.count(mask)[1] and found["sparsity"] == masks.sparsity(mask)
    assert found["left_out"] == []
    ticket = ("models/retrained/one_shot", tmp_path / "pruned", "--to", tmp_path / "third")
    assert "left out, as their weights are dense: mask.safetensors" in call("apply", *ticket)
    weights = load_file(tmp_path / "pruned/model.safetensors")
    assert all(not weights[name][~kept].any() for name, kept in mask.items())
    numbers = json.loads(call("inspect", tmp_path / "pruned", "--json"))
    assert numbers["sparsity"] == masks.sparsity(mask)


def test_evaluate_gives_the_runs_own_score(run: Path, call: Any, tmp_path: Path):
    call("export", "one_shot", "--to", tmp_path / "ticket")
    dataset = read_yaml("models/plan/data.yaml")["path"]
    options = ("--precision", "fp32", "--json")
    found = json.loads(call("evaluate", tmp_path / "ticket", f"local:{dataset}", *options))
    assert found["metrics"] == read_json("reports/results/one_shot.json")["test"]
    assert found["rows"] == 60
    text = call("evaluate", tmp_path / "ticket", f"local:{dataset}")
    assert "accuracy" in text and "60 test rows" in text


def test_a_folder_of_data_is_relative_to_where_one_is(run: Path, call: Any, tmp_path, monkeypatch):
    """Not to the repository's root, as in params.yaml."""
    call("export", "one_shot", "--to", tmp_path / "ticket")
    dataset = Path(read_yaml("models/plan/data.yaml")["path"])
    monkeypatch.chdir(dataset)
    call("evaluate", tmp_path / "ticket", f"local:../{dataset.name}")


# Errors


def test_errors_are_one_line_and_status_one(run: Path, call: Any, tmp_path: Path):
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 100)
    mask = "models/retrained/one_shot/mask.safetensors"
    other = tmp_path / "other.safetensors"
    masks.save(other, {"layer.0.w": torch.ones(3) > 0})
    call("export", "one_shot", "--to", tmp_path / "ticket")
    cases = [
        (("inspect", "nowhere"), "nowhere: no such file or folder"),
        (("inspect", tmp_path / "damaged.safetensors"), "cannot be read as safetensors"),
        (("compare", mask, other), "masks of different models (first difference: "),
        (("export", "lth"), "no finished run of 'lth' here; finished are one_shot"),
        (("apply", other, "models/base", "--to", tmp_path / "out"), "a mask of another model"),
        (("evaluate", "models/base", "sst2"), "not an exported ticket"),
        (("evaluate", tmp_path / "ticket", "sst-2"), "error: dataset: unknown 'sst-2'"),
        (("inspect", mask, "--plot", mask + "/x.png"), "mask.safetensors"),
    ]
    for arguments, words in cases:
        assert words in refused(call, *arguments), arguments


@pytest.mark.parametrize(
    "arguments",
    [[], ["prune"], ["inspect"], ["apply", "a", "b"], ["export", "isp", "--dtype", "fp16"]],
)
def test_wrong_usage_has_status_two(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: instant-soup" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"examples:\n  instant-soup {command} " in text


def test_examples_are_right_usage():
    parser = cli.parser()
    examples = [getattr(cli, command.upper()) for command in COMMANDS]
    examples.append((Path(SOURCES).parent / "docs/export.md").read_text())
    lines = [line.strip().split(" | ")[0] for text in examples for line in text.splitlines()]
    calls = [shlex.split(line, True)[1:] for line in lines if line.startswith("instant-soup ")]
    assert len(calls) >= 20
    for arguments in calls:
        parser.parse_args(arguments)


def test_an_interrupt_has_its_status(monkeypatch: pytest.MonkeyPatch):
    from instant_soup.tickets import inspect

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "read", interrupted)
    assert cli.main(["inspect", "anything"]) == 130


# As a process


def process(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "instant_soup.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
    )


def test_as_a_process_output_errors_and_statuses_are_where_they_belong(text_run: Path):
    mask = text_run / "models/retrained/one_shot/mask.safetensors"
    done = process("inspect", mask, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["kept"] > 0
    assert done.stderr == ""
    done = process("inspect", text_run / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {text_run / 'nothing'}: no such file or folder\n"
    assert process("inspect").returncode == 2


def test_help_does_not_wait_for_torch():
    script = (
        "import sys; from instant_soup.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_is_installed_under_its_name():
    import tomllib

    project = tomllib.loads((Path(SOURCES).parent / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["instant-soup"].partition(":")
    assert module == cli.__name__ and getattr(cli, function) is cli.main
