"""A row's ticket: its mask, found on the pre-trained weights, early in training or on the way."""

import argparse
from dataclasses import replace
from pathlib import Path

from instant_soup.config.sections import Recipe
from instant_soup.methods.base import AtStart
from instant_soup.pipeline.processes import run_stage, store_limit
from instant_soup.pipeline.stage_files import TicketStage, mark_idle, read_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, help="as in params.yaml")
    parser.add_argument("--of", choices=["start", "isp"], default="start", help="its base")
    arguments = parser.parse_args()
    name, of = arguments.method, arguments.of
    out = Path(f"models/tickets/{name}/{'found' if of == 'start' else f'of_{of}'}")
    stage = read_stage(TicketStage, f"ticket_{name}")
    method = stage.build() if stage else None
    if stage is None or method is None or bool(method.needs) != (of == "isp"):
        return mark_idle(out)
    limit = store_limit()  # before hours of work

    from instant_soup.pipeline.run import PipelineRun  # late: see calibrate.py
    from instant_soup.pipeline.workspace import START, isp_ticket, load_start, outputs, save_ticket
    from instant_soup.training.checkpoints import pipeline_store

    with stage_run(f"ticket {name}", stage.contents(), {"method": name}) as tracked:
        recipe = stage.recipe or Recipe(epochs=1.0, seed=stage.seed or 0)
        # What takes seconds need not be kept to go on from.
        stored = not isinstance(method, AtStart)
        run = PipelineRun(
            *load_start(START), recipe, tracked,
            code=stage.code, engine=stage.engine, teacher=stage.teacher, stored=stored,
            looks_at=method.looks_at,
        )  # fmt: skip
        if of == "isp" and stage.head is not None:
            run.tickets["isp"] = isp_ticket(stage.isp_rounds or 0, stage.isp_denoisers or 0)
            run.head = replace(stage.head, outputs=outputs())
        method.find(run, stage.sparsity)
        save_ticket(out, run, method=name)
        tracked.summary(**vars(run.cost), **run.found.get("drawn", {}))
        pipeline_store().trim(limit)


if __name__ == "__main__":
    run_stage(main)
