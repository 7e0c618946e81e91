#!/usr/bin/env bash
# The whole pipeline with the real packaged model and data, on few rows, in a clone of its own.
source "$(dirname "$0")/clone.sh"

dvc exp run -S sparsity=0.4 -S training.epochs=1 -S training.batch_size=8 -S data.train_rows=120 \
  -S data.validation_rows=30 -S data.test_rows=64 -S isp.look_ahead=2 -S isp.denoisers=2 -S 'exports=[isp]' \
  -S export_dtype=bf16 -S 'methods=[one_shot,random_init,isp_plus,movement,granet]'
test -f models/exported/isp/compact.safetensors
grep -q '"dtype": "bf16"' models/exported/isp/ticket.json
python - <<'PY'
import json

for method in ("dense", "isp", "isp_plus", "one_shot", "random_init", "movement", "granet"):
    pruned = 0 if method == "dense" else 4246733
    result = json.load(open(f"reports/results/{method}.json"))
    assert result["prunable_weights"] == 10616832, result
    assert result["pruned_weights"] == pruned, result
    assert result["cost"]["steps"] == 15, result
PY
dvc repro | tee second.log
if grep "Running stage" second.log | grep -v "'plan'"; then
  echo "error: a second dvc repro ran more than the plan" && exit 1
fi
echo "smoke run: rows have their exact sparsities and budgets, and a second run only plans"
