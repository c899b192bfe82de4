#!/usr/bin/env bash
# The runs of docs/study.md, into outputs/study. If it is stopped, run it again to continue.
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=recipes/shapes/study
export PYTHON="${PYTHON:-python}" OMP_NUM_THREADS=1  # the same digits on any number of cores
mkdir -p outputs/study
# Settings are chosen on every other prompt, and reported on the rest.
awk 'NR % 2 == 1' recipes/shapes/prompts.jsonl > outputs/study/tuning.jsonl
awk 'NR % 2 == 0' recipes/shapes/prompts.jsonl > outputs/study/held_out.jsonl
"$PYTHON" -m recipes.shapes.pictures outputs/study/pictures
# Answers and rankings, with nothing to choose.
printf '%s\n' answers ranks likelihood yes_no |
    xargs -P 2 -I{} "$PYTHON" main.py evaluate --config $here/{}.yaml
# Two evaluations at once.
printf '%s\n' strength baseline top_p top_k min_p entropy_temperature policies plain layers temperature |
    xargs -P 2 -I{} "$PYTHON" main.py evaluate --config $here/common.yaml --config $here/{}.yaml
"$PYTHON" -m recipes.shapes.study.choose outputs/study > outputs/study/headline.yaml
"$PYTHON" main.py evaluate --config $here/common.yaml --config outputs/study/headline.yaml \
    --config $here/held_out.yaml
"$PYTHON" -m recipes.shapes.study.tables outputs/study > outputs/study/tables.md
"$PYTHON" -m recipes.shapes.study.figure outputs/study
echo "Look at outputs/study/tables.md and study.svg"
