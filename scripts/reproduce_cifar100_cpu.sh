#!/usr/bin/env bash
# The rows of reproduce_cifar100.sh at a size for two CPU cores: 10 minutes a run, 25 with optimised exemplars.
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec bash "$(dirname "$0")/reproduce_cifar100.sh" --runs_dir runs/cifar100_cpu --jobs 2 \
    --network resnet8 --epochs 12 --mnemonics_epochs 10 "$@"
