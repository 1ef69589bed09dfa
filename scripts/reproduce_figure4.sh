#!/usr/bin/env bash
# Figure 4 of the paper on CIFAR-100: accuracy after each phase of LUCIR with mnemonics, LUCIR, iCaRL, LwF, BiC and
# training on all data (the upper bound), for N = 5, 10 and 25: 18 runs, their summary in runs/figure4/summary.md.
# Arguments are passed on: options of scripts/run_exp.py, and any flag of main.py, which then holds for every run.
# Called again, it continues. Fifteen of the runs are in table 1 too: --runs_dir runs/table1_cifar100 uses what is
# there, and puts this summary in place of that of the table.
#
#     bash scripts/reproduce_figure4.sh --jobs 2
#     bash scripts/reproduce_figure4.sh --epochs 2 --max_images_per_class 20 --nb_protos 5 \
#         --mnemonics_epochs 2 --mnemonics_steps 5 --runs_dir runs/quick_figure4   # quick, for a look
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py - --runs_dir runs/figure4 --table figure4 "$@" <<'END'
# N = 5
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline icarl --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline lwf --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline bic --method baseline
python main.py --dataset cifar100 --nb_phases 5 --baseline joint --method baseline
# N = 10
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline icarl --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline lwf --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline bic --method baseline
python main.py --dataset cifar100 --nb_phases 10 --baseline joint --method baseline
# N = 25
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline icarl --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline lwf --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline bic --method baseline
python main.py --dataset cifar100 --nb_phases 25 --baseline joint --method baseline
END
