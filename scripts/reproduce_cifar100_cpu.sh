#!/usr/bin/env bash
# The rows of reproduce_cifar100.sh at a size for two CPU cores: ResNet-8, 12 epochs a phase instead of 160, 10 updates of
# the exemplars; two runs at a time, a core each. A run takes 10 minutes, one with optimised exemplars 25. The
# summary is runs/cifar100_cpu/summary.md; results/README.md has what came out here. Arguments as there.
#
#     bash scripts/reproduce_cifar100_cpu.sh --minutes 180
set -euo pipefail
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec bash "$(dirname "$0")/reproduce_cifar100.sh" --runs_dir runs/cifar100_cpu --jobs 2 \
    --network resnet8 --epochs 12 --mnemonics_epochs 10 "$@"
