#!/usr/bin/env bash
# The runs of docs/study.md, into outputs/study. If it is stopped, run it again to continue.
set -euo pipefail
cd "$(dirname "$0")/../.."
evaluate() { "${PYTHON:-python}" main.py evaluate --config "$@"; }

# Is it DoLa, or would removing improbable tokens work as well?
variants='{baseline: {dola: false}, dola: {},
    dola-mid_norm: {alpha: 0.02, layer_ratio: 0.5, mid_norm: true},
    mid_norm: {mid_norm: true},
    baseline-top_p-0.95: {dola: false, top_p: 0.95},
    baseline-top_k-20: {dola: false, top_k: 20}}'
for weight in 1 2 3 5 8; do
    evaluate configs/evaluate.yaml --variants "$variants" --model.cfg_weight "$weight" \
        --writer.output_dir "outputs/study/cfg-$weight"
done
for temperature in 0.5 0.8 1.2; do
    evaluate configs/evaluate.yaml --model.temperature "$temperature" \
        --writer.output_dir "outputs/study/temperature-$temperature"
done
evaluate recipes/shapes/study.yaml
