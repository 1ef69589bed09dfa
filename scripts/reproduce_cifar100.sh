#!/usr/bin/env bash
# Tables 1 and 2, CIFAR-100, the most telling rows first; for N = 5 also each part of the method alone (not there).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py --table all --dataset cifar100 --runs_dir runs/cifar100 "$@"
