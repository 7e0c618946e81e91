"""params.yaml → one small, checked and resolved settings file for each stage that reads one."""

from instant_soup.data.datasets import Dataset
from instant_soup.data.overview import described, overview
from instant_soup.data.splits import cut_splits
from instant_soup.files import new_folder, read_yaml, write_json, write_yaml
from instant_soup.pipeline.budget import FILE
from instant_soup.pipeline.plan import budget_of, check, check_rows, plan_with_code
from instant_soup.pipeline.processes import run_stage, store_limit


def main() -> None:
    store_limit()  # which stages will ask for
    raw = read_yaml("params.yaml")
    files = plan_with_code(raw)
    dataset = Dataset.of(files["data"])
    found, budget = [described(dataset)], budget_of(raw)
    if dataset.source != "hub":
        splits = cut_splits(dataset, labels_only=True)
        if dataset.source == "local":  # of others prepare_data says it
            found = overview(dataset, splits)
        if dataset.kind != "language":  # whose training rows are blocks of tokens
            budget.check(len(splits["train"]))
            found.append(budget.told(len(splits["train"])))
    with new_folder("models/plan") as folder:
        for name, contents in files.items():
            write_yaml(folder / f"{name}.yaml", contents)
        write_json(folder / FILE, budget.contents())

    params = check(raw)
    rounds = ", ".join(f"{100 * s:g}" for s in check_rows(params))
    epochs = params.training.epochs
    share = params.isp.share(params.top.sparsity, epochs)
    print(
        f"plan: {params.top.model} on {params.top.dataset}, {epochs:g} epoch(s); "
        f"ISP prunes to {rounds} % over the first {share:.0%} of them",
        *found,
        sep="\n",
    )


if __name__ == "__main__":
    run_stage(main)
