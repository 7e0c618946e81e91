"""Which rows of the ledger compare: those of one origin.

An *origin* is what makes a result beside its settings: the weights that the run began with, its
precision, and the kind of processor. Another processor rounds, and so learns, a bit otherwise, and
it pre-trains clip-glyph to other weights. So a task's rows of each origin are a section of their
own, with tables of their own. Only the verdict takes origins together: it is about distances from
the dense network, and each of these is within one origin.
"""

import pandas as pd

ORIGIN = {  # column → how a model's name tells it, and how where it is not recorded
    "base": ("with weights {}", "with weights not recorded"),
    "precision": ("in {}", "in a precision not recorded"),
    "processor": ("on {}", "on an unrecorded processor"),
}
RUN = " (run "  # in a model's name, before its origin
ASKED = ("pretraining.", "training.precision=")  # settings that ask for another origin


def apart_by_origin(ledger: pd.DataFrame) -> pd.DataFrame:
    """The whole ledger, with models of different names where rows do not compare.

    Of each model, dataset and preset the origin with most runs keeps the model's name; of equally
    many the one with the newest run. The others have theirs behind it. So a run elsewhere neither
    hides rows nor mixes with them. Applied again it changes nothing.
    """
    task = [ledger[name] for name in ("model", "dataset", "preset")]
    task.append(ledger["variant"].map(_asked))
    of_origin = ledger.groupby([*task, *(ledger[name] for name in ORIGIN)])["finished"]
    ranked = ledger.assign(runs=of_origin.transform("size"), newest=of_origin.transform("max"))
    ranked = ranked.sort_values(["runs", "newest", *ORIGIN], kind="stable")
    main = ranked.groupby(task)[list(ORIGIN)].transform("last").reindex(ledger.index)
    told = [_told(row, usual) for row, usual in zip(_origins(ledger), _origins(main), strict=True)]
    names = [
        f"{model}{RUN}{origin})" if origin else model
        for model, origin in zip(ledger["model"], told, strict=True)
    ]
    return ledger.assign(model=pd.Series(names, ledger.index, dtype=object))


def _origins(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    return list(zip(*(rows[name] for name in ORIGIN), strict=True))


def _told(origin: tuple[str, ...], main: tuple[str, ...]) -> str:
    """In words what an origin has otherwise than the main one."""
    return " ".join(
        known.format(value) if value else unknown
        for (known, unknown), value, usual in zip(ORIGIN.values(), origin, main, strict=True)
        if value != usual
    )


def model_and_origin(name: str) -> tuple[str, str]:
    """A model's plain name, and where its rows were run: "on …", or nothing."""
    model, _, origin = name.partition(RUN)
    return model, origin.removesuffix(")")


def plain(model: str) -> str:
    """A model's name without its origin."""
    return model_and_origin(model)[0]


def _asked(variant: str) -> str:
    """The part of a variant that asks for other weights or another precision."""
    return " ".join(part for part in variant.split(" ") if part.startswith(ASKED))
