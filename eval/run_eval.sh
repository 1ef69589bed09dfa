#!/usr/bin/env bash
# Downloads the authors' checkpoints if they are not there, and evaluates them on CIFAR-100, ImageNet-Subset and ImageNet,
# or on the data sets named as arguments: bash eval/run_eval.sh cifar100. Where one cannot be evaluated, the others go on,
# and the exit status is 2. These variables say where things are, if not there:
#     CHECKPOINTS_DIR=checkpoints RESULTS_DIR=eval_results CIFAR100_DIR=data IMAGENET_DIR=data/imagenet/data
#     IMAGENET_SUB_DIR=data/seed_1993_subset_100_imagenet/data CHECKPOINTS_URL=(the authors' archive)
set -euo pipefail
source "$(dirname "$0")/../scripts/setup.sh"
checkpoints=${CHECKPOINTS_DIR:-checkpoints}
results=${RESULTS_DIR:-eval_results}
[ $# -gt 0 ] || set -- cifar100 imagenet_sub imagenet
wanted=all
[ $# -ne 1 ] || wanted=$1
for dataset in "$@"; do
    compgen -G "$checkpoints/${dataset}_nfg*" > /dev/null || absent=yes
done
if [ -n "${absent:-}" ]; then
    bash scripts/download_ckpt.sh --set "$wanted" --out "$checkpoints" ${CHECKPOINTS_URL:+--url "$CHECKPOINTS_URL"} || exit
fi
status=0
for dataset in "$@"; do
    case $dataset in
        cifar100) data=${CIFAR100_DIR:-data} ;;
        imagenet_sub) data=${IMAGENET_SUB_DIR:-data/seed_1993_subset_100_imagenet/data} ;;
        *) data=${IMAGENET_DIR:-data/imagenet/data} ;;
    esac
    for folder in "$checkpoints/${dataset}"_nfg*; do
        "$PY" eval/evaluate.py "$folder" --data_dir "$data" --out "$results/${folder##*/}" || status=$?
    done
done
exit "$status"
