"""The command beside a point makes a result with exactly the row's KEY."""

import copy
import shlex

import pytest
import yaml

from helpers import ROOT
from instant_soup.config.fields import as_text
from instant_soup.files import read_yaml
from instant_soup.grids.cells import change
from instant_soup.pipeline.plan import plan
from instant_soup.reports import ledger
from instant_soup.reports.commands import command
from instant_soup.reports.results import shared_settings

ROWS = [
    row
    for _, row in ledger.read_ledger(ROOT / "reports/results.csv")
    .query("method != 'zero_shot' and not dataset.str.endswith('@local')")
    .drop_duplicates(["model", "dataset", "method", "variant"])
    .iterrows()
]


def test_commands_make_the_rows_that_they_stand_beside():
    """One of each packaged model, dataset, method and variant of the committed ledger."""
    params = read_yaml(ROOT / "params.yaml")
    assert len(ROWS) > 50
    for row in ROWS:
        words = shlex.split(command(row.to_dict()))
        assert words[:3] == ["dvc", "exp", "run"] and set(words[3::2]) == {"-S"}
        changes = dict(word.split("=", 1) for word in words[4::2])
        changed = copy.deepcopy(params)
        change(changed, {name: yaml.safe_load(value) for name, value in changes.items()})
        made = plan(changed)[f"evaluate_{row['method']}"]
        wanted = {key: row[key] for key in ledger.KEY}
        assert {key: made[key] for key in ledger.KEY} == wanted, words


def test_what_is_local_and_what_has_blanks_can_be_run_again():
    row = {"model": "local:bert (run on a cogwheel)", "dataset": "local:own", "preset": "quick"}
    row |= {"method": "dense", "seed": 0, "target_sparsity": 0.0}
    row["variant"] = f"data.text={as_text(['the question', 'b'])} training.epochs=2"
    words = shlex.split(command(row))[4::2]
    assert words[:2] == ["model=local:FOLDER", "dataset=local:FOLDER"]
    assert words[-2:] == ["data.text=[the question,b]", "training.epochs=2"]
    assert shared_settings(row["variant"]) == row["variant"]


@pytest.mark.parametrize("model", ["minilm", "minilm (run with weights aaaa)"])
def test_a_model_is_called_as_params_yaml_calls_it(model):
    row = {"model": model, "dataset": "mrpc@local", "preset": "quick", "seed": 3}
    row |= {
        "method": "isp",
        "variant": "isp.learning_rate_range=[0.1,10.0]",
        "target_sparsity": 0.8,
    }
    assert command(row) == (
        "dvc exp run -S model=minilm -S dataset=mrpc -S preset=quick -S data.path=FOLDER "
        "-S sparsity=0.8 -S seed=3 -S 'methods=[]' -S 'isp.learning_rate_range=[0.1,10.0]'"
    )
