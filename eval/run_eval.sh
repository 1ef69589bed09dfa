#!/usr/bin/env bash
# Downloads the authors' checkpoints if they are not there, and evaluates them on CIFAR-100, ImageNet-Subset and ImageNet,
# or on the data sets named as arguments. A data set that cannot be evaluated is told and the others go on; the exit
# status is then 2.
#
#     bash eval/run_eval.sh
#     bash eval/run_eval.sh cifar100
#
# These variables say where things are, if not there:
#     CHECKPOINTS_DIR=checkpoints RESULTS_DIR=eval_results CIFAR100_DIR=data
#     IMAGENET_SUB_DIR=data/seed_1993_subset_100_imagenet/data IMAGENET_DIR=data/imagenet/data
# CHECKPOINTS_URL names another archive than the authors'.
set -euo pipefail
source "$(dirname "$0")/../scripts/setup.sh"
checkpoints=${CHECKPOINTS_DIR:-checkpoints}
results=${RESULTS_DIR:-eval_results}
[ $# -gt 0 ] || set -- cifar100 imagenet_sub imagenet

data_of() {
    case $1 in
        cifar100) echo "${CIFAR100_DIR:-data}" ;;
        imagenet_sub) echo "${IMAGENET_SUB_DIR:-data/seed_1993_subset_100_imagenet/data}" ;;
        imagenet) echo "${IMAGENET_DIR:-data/imagenet/data}" ;;
        *) echo "run_eval.sh: $1: unknown data set; cifar100, imagenet_sub, imagenet would work" >&2 && return 2 ;;
    esac
}

for dataset in "$@"; do
    data_of "$dataset" > /dev/null || exit
done
wanted=all
[ $# -ne 1 ] || wanted=$1
bash scripts/download_ckpt.sh --set "$wanted" --out "$checkpoints" ${CHECKPOINTS_URL:+--url "$CHECKPOINTS_URL"} || exit
status=0
for dataset in "$@"; do
    for folder in "$checkpoints/${dataset}"_nfg*; do
        if [ -d "$folder" ]; then
            "$PY" eval/evaluate.py "$folder" --data_dir "$(data_of "$dataset")" --out "$results/${folder##*/}" || status=$?
        else
            echo "run_eval.sh: $checkpoints holds no checkpoints of $dataset" >&2
            status=2
        fi
    done
done
exit "$status"
