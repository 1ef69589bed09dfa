#!/usr/bin/env bash
# Table 1, ImageNet-Subset, N = 5: LwF 53.62, iCaRL 65.44, BiC 70.07, LUCIR 70.84; with mnemonics up to 73.30 (LUCIR).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py --table 1 --dataset imagenet_sub --runs_dir runs/table1_imagenet_subset "$@"
