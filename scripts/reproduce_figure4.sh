#!/usr/bin/env bash
# Figure 4, CIFAR-100, N = 5, last phase: joint 70.20, LUCIR with mnemonics 56.19, LUCIR 54.30, BiC 49.03, iCaRL 47.20.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py --table figure4 --dataset cifar100 --runs_dir runs/figure4 "$@"
