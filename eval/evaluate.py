"""Accuracies of stored networks: our run folders, single checkpoints, and checkpoints of the authors' code.

    python eval/evaluate.py runs/NAME                                     a run folder
    python eval/evaluate.py runs/NAME/phase_3.pt                          one phase of it
    python eval/evaluate.py checkpoints/cifar100_nfg50_ncls2_nproto20_mtl_exp01 --data_dir data

For each phase CNN and NME accuracy over all classes seen and over the phase-0 classes, average accuracy, forgetting;
evaluation.json, evaluation.md and confusion.png in --out. Exit status: 0 done, 1 the disk failed, 2 something must be
changed, or phases are missing (those present are evaluated, the missing ones named).
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mnemonics import evaluation
from mnemonics.config.command_line import check_setting
from mnemonics.data.scenario import PhaseContext
from mnemonics.engine.device import environment
from mnemonics.engine.errors import UsageError, command
from mnemonics.engine.progress import Progress
from mnemonics.experiment.stored import PHASE_FILE, Loaded, Target, check_fit, own_target, scenario_of
from mnemonics.legacy.authors import DATASETS, EXAMPLE, MODEL_FILE, authors_target
from mnemonics.models.layers import ScaledConv2d
from mnemonics.protocol import Phase
from mnemonics.reporting.evaluation import check_out, summary_of, write
from mnemonics.reporting.text import phase_line


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Raises UsageError for values that make no sense."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Evaluate stored networks phase by phase.", allow_abbrev=False
    )
    add = parser.add_argument
    what = "a run folder, a phase_<i>.pt, a folder of the authors' checkpoints or a file in it"
    add("target", type=Path, metavar="RUN_OR_CHECKPOINT", help=what)
    add("--data_dir", help="folder of the data set (where the run had it; data)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    add("--eval_batch_size", type=int, help="batch size (that of the run; 200)")
    add("--ncm", action="store_true", help="also the nearest class mean, whose means read all training data")
    add("--out", help="folder for the results (eval_results/NAME)")
    add = parser.add_argument_group(f"for the authors' checkpoints in folders not named like {EXAMPLE}").add_argument
    add("--dataset", help=f"{', '.join(DATASETS)}, or another one that main.py knows")
    add("--nb_cl_fg", type=int, help="classes in phase 0")
    add("--nb_cl", type=int, help="classes in each later phase")
    add("--order_seed", type=int, help="make the class order from this seed (the stored order, or 1993)")
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        check_setting(name, value)
    return options


def target_of(path: Path, options: argparse.Namespace) -> Target:
    """Find out what `path` is. Raises UsageError."""
    if not os.path.exists(path):
        raise UsageError(f"{path}: no such file or folder")
    names = os.listdir(path) if path.is_dir() else [path.name]
    theirs = any(map(MODEL_FILE.fullmatch, names)) and not any(map(PHASE_FILE.fullmatch, names))
    return authors_target(path, options) if theirs else own_target(path, options)


def evaluate(target: Target, out: Path) -> None:
    """Evaluate every phase that is there, write the results and print them.

    Raises:
        UsageError: for data or files that are missing or do not fit; for missing phases, when all others are evaluated.
    """
    check_out(out)
    scenario = scenario_of(target)
    protocol, phases = scenario.protocol, []
    for index, file in target.files.items():
        phase, loaded = protocol.phases[index], target.load(index, file, scenario.device)
        check_fit(scenario, phase, file, loaded)
        headline = "cnn" if loaded.exemplars is None else target.headline
        context = PhaseContext(scenario, phase, Progress())
        measured = evaluation.evaluate(context, loaded.model, loaded.exemplars, headline)
        phases.append(entry(phase, file, loaded, measured))
        print(phase_line(phases[-1]), flush=True)
    missing = [p.index for p in protocol.phases if target.path.is_dir() and p.index not in target.files]
    without = ", ".join(str(p["phase"]) for p in phases if p["exemplars_per_class"] is None)
    no_nme = [f"NME: not measured in phases {without}, whose checkpoints hold no exemplars"] if without else []
    result = {  # the keys of results.json where the same is meant
        "name": target.name,
        "checkpoints": str(target.path),
        "kind": target.kind,
        "dataset": target.config.dataset,
        "network": loaded.network,
        "weight_transfer": any(p["weight_transfer"] for p in phases),
        "class_order": list(protocol.order),
        "class_order_sha256": protocol.order_sha256,
        "environment": environment(scenario.device),
        "headline": headline,
        "notices": [*scenario.source.notices, *target.notices, *no_nme],
        "missing_phases": missing,
        "phases": phases,
        "summary": summary_of(phases),
    }
    starts = [p.first for p in protocol.phases[: phase.index + 1]]
    text = write(out, result, measured["confusion"], starts, scenario.names_of_labels[: phase.seen])
    print(f"\n{text}\nwritten: {out / 'evaluation.json'}, evaluation.md, confusion.png\n", flush=True)
    if missing:
        absent = ", ".join(map(str, missing))
        raise UsageError(f"{target.path}: no checkpoint of phase {absent}; averages are over the others")


def entry(phase: Phase, file: Path, loaded: Loaded, measured: dict[str, Any]) -> dict[str, Any]:
    """The entry of a phase in evaluation.json, with the keys of results.json."""
    counts = [] if loaded.exemplars is None else torch.bincount(loaded.exemplars.labels).tolist()
    return {
        "phase": phase.index,
        "classes_seen": phase.seen,
        "file": file.name,
        "weight_transfer": any(isinstance(module, ScaledConv2d) for module in loaded.model.modules()),
        "exemplars_per_class": {"min": min(counts), "max": max(counts)} if counts else None,
        "accuracy": measured["accuracy"],
        "phase0_accuracy": measured["phase0_accuracy"],
        "accuracy_by_phase_of_origin": measured["by_origin"],
    }


@command("evaluate.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Find out what the target is, and evaluate it."""
    options = parse_args(arguments)
    target = target_of(options.target, options)
    evaluate(target, Path(options.out or f"eval_results/{target.name}"))


if __name__ == "__main__":
    sys.exit(main())
