#!/usr/bin/env bash
# Table 1, ImageNet, N = 5: LwF 44.35, iCaRL 51.50, BiC 62.65, LUCIR 64.45; with mnemonics up to 66.15 (LUCIR).
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py --table 1 --dataset imagenet --runs_dir runs/table1_imagenet "$@"
