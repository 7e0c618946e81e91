"""params.yaml, docs/settings.md and DVC's lists are what the settings' own fields say."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ROOT
from instant_soup.files import read_yaml
from instant_soup.methods import registry
from instant_soup.pipeline import params_text
from instant_soup.pipeline.plan import ROUNDS, needy

FILE = ROOT / "params.yaml"
DVC = read_yaml(ROOT / "dvc.yaml")


def test_params_yaml_is_what_its_values_and_the_fields_render() -> None:
    assert params_text.params_yaml(read_yaml(FILE)) == FILE.read_text()


def test_the_page_of_settings_is_what_the_fields_render() -> None:
    assert params_text.settings_page() == (ROOT / "docs/settings.md").read_text()


CHANGES: list[dict[str, Any]] = [
    {"sparsity": 0.123456789, "seed": 2**31 - 1},
    {"methods": [], "exports": []},
    {"methods": list(registry.selectable()), "exports": ["dense", "isp"]},
    {"dataset": "local:my folder/with: signs # and 'quotes'", "model": "hub:org/name"},
    {"training": {"learning_rate": 1e-5, "freeze_embeddings": False, "dropout": "model"}},
    {"isp": {"learning_rate_range": [0.5, 2.0], "combine": "vote", "mask_finding": 0.3}},
    {"data": {"text": ["a", "b"], "train_rows": "all", "label": "yes"}},
    {"pretraining": {"objective": "supervised"}, "movement": {"scope": "global"}},
]


@pytest.mark.parametrize("changes", CHANGES, ids=[str(c)[:50] for c in CHANGES])
def test_values_survive(changes: dict[str, Any]) -> None:
    values = read_yaml(FILE)
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    text = params_text.params_yaml(values)
    assert yaml.safe_load(text) == values
    assert params_text.params_yaml(yaml.safe_load(text)) == text
    longest = max(len(line) for line in text.splitlines() if line.lstrip().startswith("#"))
    assert longest <= 100


def test_main_renders_both_files_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = {**read_yaml(FILE), "sparsity": 0.5, "isp": {"denoisers": 7}}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    Path("docs").mkdir()
    params_text.main()
    found = read_yaml("params.yaml")
    assert found["sparsity"] == 0.5 and found["isp"]["denoisers"] == 7
    assert found["isp"].keys() == read_yaml(FILE)["isp"].keys()  # null for what was left out
    assert Path("docs/settings.md").read_text() == (ROOT / "docs/settings.md").read_text()


def test_every_method_and_every_setting_is_named() -> None:
    text, page = FILE.read_text(), (ROOT / "docs/settings.md").read_text()
    assert all(f" {name}" in text for name in registry.selectable())
    for section, (_, fields) in params_text.sections().items():
        assert f"\n{section}:" in text and f"\n## {section}\n" in page
        assert all(f"\n  {key}: " in text and f"| `{key}` |" in page for key in fields)


def test_rows_that_take_over_isps_ticket_are_those_of_dvc_yaml() -> None:
    assert DVC["stages"]["ticket_of_isp"]["foreach"] == needy()


def test_dvc_yaml_has_all_rounds_in_a_chain() -> None:
    (named,) = [entry["rounds"] for entry in DVC["vars"] if "rounds" in entry]
    starts = ["models/start", *(f"models/isp/round_{i}" for i in range(ROUNDS - 1))]
    assert named == [{"id": i, "start": start} for i, start in enumerate(starts)]
