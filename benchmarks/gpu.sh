#!/usr/bin/env bash
# On a machine with a GPU: check the tokens against the float64 reference, then print the tables
# for Janus-Pro-7B's sizes: one prompt with 8 images, and 16 prompts with 4.
set -euo pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
python -m pytest tests/test_gpu.py
seven="python -m benchmarks.decode --preset 7b --device cuda --dtype bfloat16 --compile true"
$seven --prompts 1 --images 8 --repeats 3 --output outputs/benchmarks/8_images
$seven --prompts 16 --images 4 --repeats 3 --scaling true --output outputs/benchmarks/64_images
