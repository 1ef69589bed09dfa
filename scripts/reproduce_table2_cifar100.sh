#!/usr/bin/env bash
# Table 2 of the paper on CIFAR-100: LUCIR with weight transfer and fine-tuning, exemplars by mnemonics, at random and
# by herding, each with the old ones adjusted (Eq. 10; --adjust_always) and without, for N = 5, 10 and 25: 18 runs, their
# summary in runs/table2_cifar100/summary.md.
# Arguments are passed on: options of scripts/run_exp.py, and any flag of main.py, which then holds for every run.
# Called again, it continues.
#
#     bash scripts/reproduce_table2_cifar100.sh --jobs 2 --seeds 1993 1994 1995
#     bash scripts/reproduce_table2_cifar100.sh --epochs 2 --max_images_per_class 20 --nb_protos 5 \
#         --mnemonics_epochs 2 --mnemonics_steps 5 --runs_dir runs/quick_table2   # quick, for a look
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py - --runs_dir runs/table2_cifar100 --table table2 "$@" <<'END'
# N = 5
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars mnemonics --adjust_always
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars mnemonics --no_adjust
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars random
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars random --adjust_always
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars herding
python main.py --dataset cifar100 --nb_phases 5 --baseline lucir --method mnemonics --exemplars herding --adjust_always
# N = 10
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars mnemonics --adjust_always
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars mnemonics --no_adjust
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars random
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars random --adjust_always
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars herding
python main.py --dataset cifar100 --nb_phases 10 --baseline lucir --method mnemonics --exemplars herding --adjust_always
# N = 25
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars mnemonics --adjust_always
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars mnemonics --no_adjust
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars random
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars random --adjust_always
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars herding
python main.py --dataset cifar100 --nb_phases 25 --baseline lucir --method mnemonics --exemplars herding --adjust_always
END
