"""A finished network → models/exported: a folder that transformers or open_clip loads as it is."""

import argparse

from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.tracking import stage_run
from instant_soup.tickets.export import EXPORTED, export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, help="as in params.yaml")
    method = parser.parse_args().method
    with stage_run(f"export {method}", {}, {"method": method}) as run:
        export(method, EXPORTED / method)
        run.artifact(EXPORTED / method / "README.md")


if __name__ == "__main__":
    run_stage(main)
