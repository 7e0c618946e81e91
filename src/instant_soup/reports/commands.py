"""The command that makes a row of the ledger again."""

import re
import shlex
from collections.abc import Hashable, Mapping
from typing import Any

from instant_soup.config.fields import settings_of_variant
from instant_soup.methods import registry
from instant_soup.reports.origins import plain

ALWAYS = ("dense", "isp")  # rows of every run
LOCAL = "@local"  # behind a dataset that was read from a local copy


def command(row: Mapping[Hashable, Any]) -> str:
    """`dvc exp run …` with all that a row's KEY names; FOLDER: where local files lie."""
    model, dataset = plain(row["model"]), row["dataset"].removesuffix(LOCAL)
    places = [re.sub("local:.*", "local:FOLDER", name) for name in (model, dataset)]
    changes = [f"model={places[0]}", f"dataset={places[1]}", f"preset={row['preset']}"]
    if dataset != row["dataset"]:
        changes.append("data.path=FOLDER")
    if row["method"] not in registry.dense_rows():
        changes.append(f"sparsity={row['target_sparsity']:g}")
    changes.append(f"seed={row['seed']}")
    changes.append(f"methods=[{'' if row['method'] in ALWAYS else row['method']}]")
    changes += settings_of_variant(row["variant"])
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(change)}" for change in changes)])
