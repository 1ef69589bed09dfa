#!/usr/bin/env bash
# Tables 1 and 2 of the paper on CIFAR-100 in one go, the most telling rows first, so that whatever time there is fills
# as much of them as it can: N = 5, 10, 25, each with LUCIR, iCaRL, LUCIR with random and herding exemplars under weight
# transfer, LwF and BiC; for N = 5, what weight transfer, fine-tuning and optimised exemplars do one by one (not in the
# paper); then the other rows of table 2. The summary is runs/cifar100/summary.md.
# Arguments are passed on: options of scripts/run_exp.py, and any flag of main.py, which then holds for every run. Called
# again, it continues; more seeds come after all rows of the first.
#
#     bash scripts/reproduce_cifar100.sh --jobs 8 --minutes 600 --seeds 1993 1994 1995    # the paper's settings: a GPU
#     bash scripts/reproduce_cifar100_cpu.sh --minutes 180                                # two CPU cores: a small network
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py - --runs_dir runs/cifar100 "$@" <<'END'
# N = 5
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics
python main.py --dataset cifar100 --nb_phases 5 --baseline icarl --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline icarl --method mnemonics
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars random
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars herding
python main.py --dataset cifar100 --nb_phases 5 --baseline lwf --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline lwf --method mnemonics
python main.py --dataset cifar100 --nb_phases 5 --baseline bic --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline bic --method mnemonics
# N = 5, one by one
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method baseline --weight_transfer
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars herding --no-weight_transfer
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method baseline --exemplars mnemonics
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --no-weight_transfer
# N = 10
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics
python main.py --dataset cifar100 --nb_phases 10 --baseline icarl --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline icarl --method mnemonics
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars random
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars herding
python main.py --dataset cifar100 --nb_phases 10 --baseline lwf --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline lwf --method mnemonics
python main.py --dataset cifar100 --nb_phases 10 --baseline bic --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline bic --method mnemonics
# N = 25
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics
python main.py --dataset cifar100 --nb_phases 25 --baseline icarl --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline icarl --method mnemonics
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars random
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars herding
python main.py --dataset cifar100 --nb_phases 25 --baseline lwf --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline lwf --method mnemonics
python main.py --dataset cifar100 --nb_phases 25 --baseline bic --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline bic --method mnemonics
# the rest of table 2
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --adjust_always
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars random --adjust_always
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars herding --adjust_always
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --adjust_always
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars random --adjust_always
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars herding --adjust_always
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --adjust_always
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars random --adjust_always
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars herding --adjust_always
END
