#!/usr/bin/env bash
# Table 2, CIFAR-100, N = 5: random 63.51, herding 63.56, mnemonics 64.95; not adjusted 63.06, 63.39, 63.97.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py --table 2 --dataset cifar100 --runs_dir runs/table2_cifar100 "$@"
