#!/usr/bin/env bash
# The runs of docs/study.md, into outputs/study. Stopped, it goes on.
set -euo pipefail
cd "$(dirname "$0")/../.."
evaluate() { "${PYTHON:-python}" main.py evaluate --config "$@"; }

for weight in 1 2 3 5 8; do
    evaluate configs/evaluate.yaml --model.cfg_weight "$weight" \
        --writer.output_dir "outputs/study/cfg-$weight"
done
for temperature in 0.5 0.8 1.2; do
    evaluate configs/evaluate.yaml --model.temperature "$temperature" \
        --writer.output_dir "outputs/study/temperature-$temperature"
done
evaluate recipes/shapes/study.yaml
