#!/usr/bin/env bash
# Table 1, CIFAR-100, N = 5: LwF 49.59, iCaRL 57.12, BiC 59.36, LUCIR 63.17; with mnemonics 54.43, 59.88, 60.67, 64.95.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py --table 1 --dataset cifar100 --runs_dir runs/table1_cifar100 "$@"
