"""The paper's claim, and what the ledger says of it, in seven short sentences."""

import math

import pandas as pd

from instant_soup.reports.results import number, short
from instant_soup.reports.verdict import between, comparable, costs_of, with_interval

CLAIM = "The paper says that ISP beats lottery tickets (LTH) at about the cost of one fine-tuning."


def claim(ledger: pd.DataFrame) -> str:
    """What was measured of ISP and of ISP+ against LTH, over tasks, seeds and sparsities.

    Of the preset with the most runs. Nothing where LTH and ISP were not run on the same tasks.
    """
    runs = comparable(ledger)
    own = runs[runs["preset"].isin(runs["preset"].mode()[:1])]
    sentences, pairs = [CLAIM], [("isp", "lth"), ("isp_plus", "lth")]
    lines = between(own, pairs)
    corrected = ", corrected for both comparisons" if len(lines) > 1 else ""
    for (method, _), line in lines.iterrows():
        pair = own[own["method"].isin((method, "lth"))]
        places = pair.groupby(["task", "sparsity", "origin"])["method"].transform("nunique")
        mean, cost = line["mean"], costs_of(pair[places == 2])
        interval = with_interval(mean, line["low"], line["high"]).partition(" ")[2]
        tasks = f"{line['tasks']:.0f} task{'' if line['tasks'] == 1 else 's'}"
        side = "below" if mean < 0 else "above"
        noise = "beyond noise" if line["differs"] else "within noise"
        tested = f"That is {noise} (p = {number(line['p_holm'], '.2g')}{corrected})."
        if math.isnan(line["p_holm"]):
            tested = "That is not tested: the seeds are too few, or have no spread."
        sentences.append(
            f"Here {short(method)} is {abs(mean):.2f} points {side} LTH"
            f"{f' {interval}' if interval else ''}, a mean over {tasks} and "
            f"all their sparsities. {tested} "
            f"{short(method)} costs {cost[method]:.1f} fine-tunings, and LTH {cost['lth']:.1f}."
        )
    return " ".join(sentences) if len(sentences) > 1 else ""
