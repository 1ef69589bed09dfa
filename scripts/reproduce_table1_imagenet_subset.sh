#!/usr/bin/env bash
# Table 1 of the paper on ImageNet-Subset: average accuracy and forgetting of LUCIR, iCaRL, LwF and BiC, as they are and
# with mnemonics, for N = 5, 10 and 25: 24 runs, their summary in runs/table1_imagenet_subset/summary.md.
# Arguments are passed on: options of scripts/run_exp.py, and any flag of main.py, which then holds for every run.
# Called again, it continues.
#
#     bash scripts/reproduce_table1_imagenet_subset.sh --jobs 2 --seeds 1993 1994 1995
#     bash scripts/reproduce_table1_imagenet_subset.sh --epochs 2 --max_images_per_class 20 --nb_protos 5 \
#         --mnemonics_epochs 2 --mnemonics_steps 5 --runs_dir runs/quick_table1_subset   # quick, for a look
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" scripts/run_exp.py - --runs_dir runs/table1_imagenet_subset --table table1 "$@" <<'END'
# N = 5
python main.py --dataset imagenet_sub --nb_phases 5 --baseline lucir --method baseline
python main.py --dataset imagenet_sub --nb_phases 5 --baseline lucir --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 5 --baseline icarl --method baseline
python main.py --dataset imagenet_sub --nb_phases 5 --baseline icarl --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 5 --baseline lwf --method baseline
python main.py --dataset imagenet_sub --nb_phases 5 --baseline lwf --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 5 --baseline bic --method baseline
python main.py --dataset imagenet_sub --nb_phases 5 --baseline bic --method mnemonics
# N = 10
python main.py --dataset imagenet_sub --nb_phases 10 --baseline lucir --method baseline
python main.py --dataset imagenet_sub --nb_phases 10 --baseline lucir --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 10 --baseline icarl --method baseline
python main.py --dataset imagenet_sub --nb_phases 10 --baseline icarl --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 10 --baseline lwf --method baseline
python main.py --dataset imagenet_sub --nb_phases 10 --baseline lwf --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 10 --baseline bic --method baseline
python main.py --dataset imagenet_sub --nb_phases 10 --baseline bic --method mnemonics
# N = 25
python main.py --dataset imagenet_sub --nb_phases 25 --baseline lucir --method baseline
python main.py --dataset imagenet_sub --nb_phases 25 --baseline lucir --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 25 --baseline icarl --method baseline
python main.py --dataset imagenet_sub --nb_phases 25 --baseline icarl --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 25 --baseline lwf --method baseline
python main.py --dataset imagenet_sub --nb_phases 25 --baseline lwf --method mnemonics
python main.py --dataset imagenet_sub --nb_phases 25 --baseline bic --method baseline
python main.py --dataset imagenet_sub --nb_phases 25 --baseline bic --method mnemonics
END
