"""A small CLIP model of our own, pre-trained on rendered characters (`model: clip-glyph`)."""

from pathlib import Path

from instant_soup.files import read_json
from instant_soup.pipeline.processes import run_stage
from instant_soup.pipeline.stage_files import PretrainStage, mark_idle, read_stage
from instant_soup.pipeline.tracking import stage_run


def main() -> None:
    settings = read_stage(PretrainStage, "pretrain_clip")
    out = Path("models/pretrained")
    if settings is None:
        return mark_idle(out)

    # Late: an idle stage need not wait for torch.
    from instant_soup.pretraining import clip_glyph
    from instant_soup.training.checkpoints import pipeline_store

    store = pipeline_store()
    with stage_run("pretrain clip", settings.contents(), {}) as run:
        model_config = read_json(clip_glyph.MODEL_CONFIG)
        state, curve = clip_glyph.pretrain(model_config, settings, run, store)
        clip_glyph.save_model(out, model_config, state, curve)
        run.summary(**curve[-1])
    store.forget()


if __name__ == "__main__":
    run_stage(main)
