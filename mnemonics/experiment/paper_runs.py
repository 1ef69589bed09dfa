"""The runs of the paper's tables and of its figure 4, as flags of main.py; --dataset is left to the caller."""

from itertools import product

PHASES = (5, 10, 25)  # the paper's N
OURS = "--baseline lucir --method mnemonics"
TABLE1 = [
    f"--baseline {baseline} --method {method}"
    for baseline in ("lucir", "icarl", "lwf", "bic")
    for method in ("baseline", "mnemonics")
]
TABLE2 = [
    f"{OURS} --exemplars mnemonics --adjust_always",
    f"{OURS} --exemplars mnemonics --no_adjust",
    f"{OURS} --exemplars random",
    f"{OURS} --exemplars random --adjust_always",
    f"{OURS} --exemplars herding",
    f"{OURS} --exemplars herding --adjust_always",
]
FIGURE4 = [OURS, *(f"--baseline {name} --method baseline" for name in ("lucir", "icarl", "lwf", "bic", "joint"))]

# Both tables in one go, the most telling rows first, so that whatever time there is fills as much of them as it can.
NOT_ADJUSTED = [*TABLE1[:4], f"{OURS} --exemplars random", f"{OURS} --exemplars herding", *TABLE1[4:]]
ONE_BY_ONE = [  # not in the paper: what weight transfer, fine-tuning and optimised exemplars do alone
    "--baseline lucir --method baseline --weight_transfer",
    f"{OURS} --exemplars herding --no-weight_transfer",
    "--baseline lucir --method baseline --exemplars mnemonics",
    f"{OURS} --no-weight_transfer",
]
ADJUSTED = [f"{OURS} {exemplars} --adjust_always" for exemplars in ("", "--exemplars random", "--exemplars herding")]

RUNS = {  # name, as in reporting.paper.TABLES -> (N, the other flags) of each run
    "table1": [*product(PHASES, TABLE1)],
    "table2": [*product(PHASES, TABLE2)],
    "figure4": [*product(PHASES, FIGURE4)],
    "all": [*product([5], NOT_ADJUSTED + ONE_BY_ONE), *product([10, 25], NOT_ADJUSTED), *product(PHASES, ADJUSTED)],
}


def paper_runs(name: str) -> list[list[str]]:
    """The flags of each run of "table1", "table2", "figure4" or "all" (both tables), in the order to run them in. The
    last batch of an epoch is kept, as the codes do that the paper's numbers come from."""
    return [["--nb_phases", str(phases), *flags.split(), "--last_batch", "keep"] for phases, flags in RUNS[name]]
