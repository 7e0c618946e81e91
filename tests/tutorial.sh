#!/usr/bin/env bash
# docs/tutorial.md as a newcomer would follow it, in a clone of its own, with smaller budgets.
source "$(dirname "$0")/clone.sh"

# A few rows of the ledger: each run makes all tables anew; tests/pipeline.sh makes those of all.
sed -i 10q reports/results.csv

# All blocks marked bash but the first, which sets the environment up.
python - > tutorial.sh <<'PY'
from pathlib import Path

blocks = Path("docs/tutorial.md").read_text().split("```bash\n")[2:]
script = "\n".join(block.split("```")[0] for block in blocks)
little = "-S isp.denoisers=1 -S isp.look_ahead=2 -S training.batch_size=8 -S data.validation_rows=40"
small = {
    "training.epochs=2": f"training.epochs=0.5 {little} -S data.train_rows=320",
    "training.epochs=10": f"training.epochs=4 {little} -S data.train_rows=200"
    " -S pretraining.steps=20 -S pretraining.batch_size=64",
}
for full, quick in small.items():
    assert script.count(full) == 1, full
    script = script.replace(full, quick)
print(script)
PY
bash -euo pipefail tutorial.sh
test -f ../my-ticket/open_clip_model.safetensors
python - <<'PY'
import json

from instant_soup.sparsity.masks import load, sparsity

assert round(sparsity(load("../my-ticket/mask.safetensors")), 3) == 0.7
results = [json.load(open(f"reports/results/{m}.json")) for m in ("isp", "one_shot", "isp_plus")]
dense = json.load(open("reports/results/dense.json"))
for result in results:
    assert (result["model"], result["cost"]["steps"]) == ("clip-glyph", dense["cost"]["steps"])
    assert result["pruned_weights"] == round(0.7 * result["prunable_weights"]), result
PY
echo "tutorial: every command of docs/tutorial.md ran"
