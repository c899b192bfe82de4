#!/usr/bin/env bash
# A job of Hugging Face Jobs: generates the images of a prompt file, and uploads them as a dataset.
#
#     WHEEL=https://…/lit_dola-0.3.0-py3-none-any.whl BUCKET=me/runs \
#         recipes/huggingface/job.sh OWNER/DATASET --data.prompts "a red circle"
#
# The run lies in a bucket, so that a further attempt resumes it. The wheel
# (`python -m build --wheel`) must be at an address that the job reaches. DRY_RUN=1 submits nothing.
set -euo pipefail
exec hf jobs uv run ${DRY_RUN:+--dry-run} --flavor "${FLAVOR:-h200}" --timeout "${TIMEOUT:-6h}" \
    --attempts 3 --secrets HF_TOKEN --volume "hf://buckets/$BUCKET:/runs" \
    --with "lit-dola[export] @ $WHEEL" "$(dirname "$0")/generate.py" "$@"
