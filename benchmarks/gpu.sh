#!/usr/bin/env bash
# On a machine with a GPU, in under 9 minutes and without a network: check the tokens against the
# float64 reference, then print one table for Janus-Pro-7B's sizes with random weights.
set -euo pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader
python -m pytest tests/test_gpu.py
python -m benchmarks.gpu "$@"
