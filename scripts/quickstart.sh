#!/usr/bin/env bash
# The main job at a small scale: six phases on handwritten digits, once with herding and once with optimised exemplars,
# everything else equal. A few minutes on two CPU cores after installation; a second call shows the finished runs.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
runs=()
for exemplars in herding mnemonics; do
    run=runs/quickstart_$exemplars
    "$PY" main.py --dataset digits --nb_phases 5 --network resnet8 --epochs 30 --nb_protos 5 --mnemonics_epochs 10 \
        --exemplars "$exemplars" --out "$run"
    runs+=("$run")
done
"$PY" scripts/report.py "${runs[@]}" --out runs/quickstart.html
