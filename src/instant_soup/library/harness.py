"""Multiple-choice accuracy of a language model, by lm-evaluation-harness.

Perplexity hides losses of knowledge (Jaiswal et al. 2024, arXiv 2310.01382). The harness is an
optional requirement, `pip install instant-soup[harness]`; it gets the model in memory.
"""

from pathlib import Path
from typing import Any

from instant_soup.errors import UserError
from instant_soup.models import causal
from instant_soup.models.hugging_face import load_tokenizer
from instant_soup.models.memory import WEIGHT

TASKS = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "mmlu")


def choices(
    folder: str | Path, tasks: list[str], *, limit: int | None = None, batch_size: int = 8
) -> dict[str, dict[str, float]]:
    """Measure a checkpoint on some tasks of the harness, which fetches their data.

    Args:
        folder: A language model's folder.
        tasks: Names that the harness knows, as those in TASKS.
        limit: Questions of a task; None: all.
        batch_size: Questions that are answered together.

    Returns:
        Task → metric → value, the numbers among what the harness reports.

    Raises:
        UserError: If the harness is not installed, or the folder holds no language model that fits.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise UserError(
            "harness: lm-evaluation-harness is not installed: pip install 'instant-soup[harness]'"
        ) from None
    network = causal.load_pretrained(folder, WEIGHT).eval()
    held: Any = HFLM(pretrained=network, tokenizer=load_tokenizer(folder), batch_size=batch_size)
    found = simple_evaluate(model=held, tasks=tasks, limit=limit)["results"]
    return {
        task: {name: float(v) for name, v in own.items() if isinstance(v, int | float)}
        for task, own in found.items()
    }
