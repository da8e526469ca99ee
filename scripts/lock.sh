#!/usr/bin/env bash
# Writes constraints.txt again: the exact version of everything that bgekit and its extras pull in, for every
# supported Python (environment markers say where they differ). Run it to move to newer releases, then run
# the tests. It resolves from metadata alone: nothing is downloaded but uv, which runs in an environment of
# its own that is removed afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

# The torch release whose CPU build the reference machine has. Moving it is a decision, not a by-product.
torch="torch==2.13.0"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install -q uv
echo "$torch" > "$scratch/torch.txt"
"$scratch/venv/bin/uv" pip compile pyproject.toml --all-extras --universal --python-version 3.10 \
    --constraint "$scratch/torch.txt" --quiet --no-header --no-annotate -o "$scratch/lock.txt"

{
    echo "# Exact versions of the tested environment, written by scripts/lock.sh (make lock): do not edit."
    echo "# A constraints file installs nothing by itself: pip install -c constraints.txt -e ."
    echo "# torch pins its own CUDA libraries, and a CPU build has none, so they are left out here."
    grep -v -E '^(nvidia-|cuda-|triton==)' "$scratch/lock.txt"
} > "$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
