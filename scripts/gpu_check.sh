#!/usr/bin/env bash
# The first ten minutes on a new GPU: whether it works there, and how fast. Everything goes into one folder.
#     bash scripts/gpu_check.sh OUT [DATA_DIR]     CIFAR-100 in DATA_DIR (data); PY=... is the Python to use (python3)
# A part that fails does not stop the others; the exit status is 1 then. DEVICE=cpu rehearses it without a GPU.
set -uo pipefail
[ $# -ge 1 ] || { echo "gpu_check.sh: say where to: bash scripts/gpu_check.sh OUT [DATA_DIR]" >&2; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd) data=$(cd "${2:-data}" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 1
PY=${PY:-python3} DEVICE=${DEVICE:-cuda} NETWORK=${NETWORK:-resnet32} status=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
part() {  # NAME SECONDS COMMAND...: what it says goes into OUT/NAME.txt
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    timeout -s INT -k 20 "$limit" "$@" > "$out/$name.txt" 2>&1 && echo "$name: $((SECONDS - start)) s" || { echo "$name: FAILED"; status=1; }
}
run() { "$PY" main.py --dataset cifar100 --data_dir "$data" --nb_phases 5 --network "$NETWORK" --device "$DEVICE" "$@"; }
export -f run
export PY data DEVICE NETWORK

part versions 60 "$PY" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")'
part run 240 bash -c 'run --epochs 4 --method baseline --out "$0/run"' "$out"
part run_mnemonics 240 bash -c 'run --epochs 2 --mnemonics_epochs 4 --out "$0/run_mnemonics"' "$out"
part speed 240 "$PY" scripts/benchmark/benchmark.py train unroll --data_dir "$data" --device "$DEVICE" --network "$NETWORK" \
    --baselines lucir --steps 4 15 --batch 128 --out "$out/speed.json"
part profile 120 "$PY" - <<'EOF'
import os

import torch
from torch.profiler import ProfilerActivity, profile

from mnemonics.data.batches import LabelledImages
from mnemonics.engine.device import prepare
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings
from mnemonics.models import make_network

device = torch.device(os.environ["DEVICE"])
prepare(device, deterministic=False)
model, draws = make_network(os.environ["NETWORK"], 100, device), torch.Generator(device).manual_seed(0)
images = torch.randn(200, 3, 32, 32, generator=draws, device=device)
exemplars = LabelledImages(images, torch.arange(200, device=device) % 100)
base = BaseLevel(model, BilevelSettings(steps=2, cuda_graphs=False, memory=0))  # each of the steps is rebuilt in reverse
for _ in range(2):  # the first one chooses kernels
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]) as found:
        base.gradient(exemplars, exemplars, base.draw(exemplars.labels, draws), 0)
print(found.key_averages().table(sort_by=f"{device.type}_time_total", row_limit=25))
EOF
# those that need a GPU, on one thread: their networks are too small for several
part tests 300 env OMP_NUM_THREADS=1 "$PY" -m pytest -vv -p no:cacheprovider tests/test_fast_path.py \
    tests/exemplars/test_unroll.py -k "fast_path or cuda"
rm -f "$out"/run*/*.pt "$out"/run*/events.* "$out"/run*/*.png  # large, and of no use here
exit $status
