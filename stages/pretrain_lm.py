"""A small language model of our own, pre-trained on English snippets (`model: llama-snippets`)."""

from pathlib import Path

from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.stage_files import PretrainStage, mark_idle, read_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    settings = read_stage(PretrainStage, "pretrain_lm")
    out = Path("models/pretrained_lm")
    if settings is None:
        return mark_idle(out)

    # Late: an idle stage need not wait for torch.
    from instant_soup.files import new_folder
    from instant_soup.pretraining import llama_snippets
    from instant_soup.training.checkpoints import pipeline_store

    store = pipeline_store()
    with stage_run("pretrain lm", settings.contents(), {}) as run, new_folder(out) as unfinished:
        run.summary(**llama_snippets.pretrain(unfinished, settings, run, store))
    store.forget()


if __name__ == "__main__":
    run_stage(main)
