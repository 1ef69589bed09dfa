"""Accuracies of stored networks: our run folders, single checkpoints, and checkpoints of the authors' code.

    python eval/evaluate.py runs/NAME                                     a run folder
    python eval/evaluate.py runs/NAME/phase_3.pt                          one phase of it
    python eval/evaluate.py checkpoints/cifar100_nfg50_ncls2_nproto20_mtl_exp01 --data_dir data

For each phase CNN and NME accuracy over all classes seen and over the phase-0 classes, average accuracy, forgetting;
evaluation.json, evaluation.md and confusion.png in --out. Exit status: 0 done, 2 something must be changed, or phases
are missing (those present are evaluated, the missing ones named).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnemonics.config.checks import check_setting
from mnemonics.data.batches import Preprocessing
from mnemonics.data.sources import load_source
from mnemonics.engine.device import environment, pick_device, prepare
from mnemonics.engine.errors import UsageError
from mnemonics.evaluation import accuracies, class_means, confusion_matrix, predict
from mnemonics.experiment.state import Experiment
from mnemonics.experiment.stored import PHASE_FILE, Loaded, Target, own_target, protocol_of
from mnemonics.legacy.authors import DATASETS, EXAMPLE, MODEL_FILE, authors_target
from mnemonics.models.layers import ScaledConv2d
from mnemonics.protocol import Phase, class_order
from mnemonics.reporting.evaluation import check_out, contradictions, phase_line, summary_of, without_exemplars, write


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Evaluate stored networks phase by phase.", allow_abbrev=False
    )
    add = parser.add_argument
    add("targets", nargs="+", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder, a phase_<i>.pt, a folder of "
        "the authors' checkpoints or a file in it")  # fmt: skip
    add("--data_dir", help="folder of the data set (where the run had it; data)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    add("--eval_batch_size", type=int, help="batch size (that of the run; 200)")
    add("--ncm", action="store_true", help="also the nearest class mean, whose means read all training data")
    add("--out", type=Path, help="folder for the results, with one per target if there are several (eval_results/NAME)")
    theirs = parser.add_argument_group("for checkpoints of the authors' code whose folder is not named like " + EXAMPLE)
    theirs.add_argument("--dataset", help=f"{', '.join(DATASETS)}, or another one that main.py knows")
    theirs.add_argument("--nb_cl_fg", type=int, help="classes in phase 0")
    theirs.add_argument("--nb_cl", type=int, help="classes in each later phase")
    theirs.add_argument(
        "--order_seed", type=int, help="make the class order from this seed (the stored order, or 1993)"
    )
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raises UsageError for values that make no sense."""
    for name in ("data_dir", "device", "eval_batch_size", "out", "dataset", "nb_cl_fg", "nb_cl", "order_seed"):
        value = getattr(options, name)
        check_setting(name, str(value) if isinstance(value, Path) else value)


def target_of(path: Path, options: argparse.Namespace) -> Target:
    """Find out what `path` is. Raises UsageError."""
    try:
        path.stat()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        raise UsageError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None
    if not path.is_dir():
        return authors_target(path, options) if MODEL_FILE.fullmatch(path.name) else own_target(path, options)
    for pattern, make in ((PHASE_FILE, own_target), (MODEL_FILE, authors_target)):
        if any(pattern.fullmatch(file.name) for file in path.iterdir()):
            return make(path, options)
    raise UsageError(
        f"{path}: holds neither phase_<i>.pt nor run_<r>_iteration_<k>_model.pth; give the folder that does"
    )


def evaluate(target: Target, out: Path) -> tuple[dict[str, Any], str]:
    """Evaluate every phase that is there and write the results. Returns (what evaluation.json holds, the Markdown).

    Raises:
        UsageError: for data or files that are missing or do not fit.
    """
    check_out(out)
    experiment, notices = experiment_of(target, out)
    phases, protocol = [], experiment.protocol
    for index, file in target.files.items():
        if not 0 <= index < len(protocol.phases):
            raise UsageError(f"{file}: would be of phase {index}, which there is not; {sizes(experiment)}")
        phase = protocol.phases[index]
        loaded = target.load(index, file, experiment.device)
        check_fit(experiment, phase, file, loaded)
        found, predictions, labels = evaluate_phase(experiment, phase, loaded)
        phases.append(entry(phase, file, loaded, found))
        print(phase_line(phases[-1]), flush=True)
    headline = target.headline if target.headline in predictions else "cnn"
    result = described(target, experiment, loaded.network, headline, notices, phases)
    confusion = confusion_matrix(predictions[headline], labels, phase.seen)
    starts = [p.first for p in protocol.phases[: phase.index + 1]]
    names = [experiment.source.class_names[c] for c in protocol.order[: phase.seen]]
    return result, write(out, result, confusion, starts, names)


def described(
    target: Target,
    experiment: Experiment,
    network: str,
    headline: str,
    notices: list[str],
    phases: list[dict[str, Any]],
) -> dict[str, Any]:
    """What evaluation.json holds: the keys of results.json where the same is meant."""
    expected = range(len(experiment.protocol.phases)) if target.path.is_dir() else target.files
    odd = contradictions(target.config.weight_transfer, phases) if target.kind == "authors" else []
    return {
        "name": target.name,
        "checkpoints": str(target.path),
        "kind": target.kind,
        "dataset": target.config.dataset,
        "network": network,
        "weight_transfer": any(p["weight_transfer"] for p in phases),
        "class_order": list(experiment.protocol.order),
        "class_order_sha256": experiment.protocol.order_sha256,
        "environment": environment(experiment.device),
        "headline": headline,
        "notices": [*notices, *without_exemplars(phases), *odd],
        "missing_phases": sorted(set(expected) - set(target.files)),
        "phases": phases,
        "summary": summary_of(phases),
    }


def experiment_of(target: Target, out: Path) -> tuple[Experiment, list[str]]:
    """Data, class order and device; and what to tell about them."""
    config = target.config
    device = pick_device(config)
    prepare(device, config.deterministic)
    source = load_source(config)
    order = class_order(source.num_classes, config.order_seed) if target.order is None else target.order
    if len(order) != source.num_classes:
        raise UsageError(
            f"{target.path}: its class order has {len(order)} classes, {source.name} has {source.num_classes}"
        )
    protocol = protocol_of(order, config.nb_cl_fg, config.nb_cl)
    experiment = Experiment(config, source, protocol, Preprocessing.of(source, device), device, out)
    return experiment, [*source.notices, *target.notices]


def sizes(experiment: Experiment) -> str:
    config, phases = experiment.config, experiment.protocol.phases
    return (
        f"phase 0 has --nb_cl_fg {config.nb_cl_fg} classes, phases 1 to {len(phases) - 1} --nb_cl {config.nb_cl} each"
    )


def check_fit(experiment: Experiment, phase: Phase, file: Path, loaded: Loaded) -> None:
    """Raises UsageError where the network is for another number of classes or another size of images."""
    classes, size = len(loaded.model.classifier.weight), experiment.source.image_size
    if classes != phase.seen:
        raise UsageError(f"{file}: a network for {classes} classes, after phase {phase.index} there are {phase.seen}; "
                         f"{sizes(experiment)}")  # fmt: skip
    if loaded.image_size not in (None, size):
        raise UsageError(f"--dataset {experiment.config.dataset}: images of {size}x{size} pixels, {file} needs "
                         f"{loaded.image_size}x{loaded.image_size}")  # fmt: skip


def evaluate_phase(
    experiment: Experiment, phase: Phase, loaded: Loaded
) -> tuple[dict[str, dict], dict[str, Tensor], Tensor]:
    """What `experiment.evaluate` measured after this phase of a run, from what is stored.

    Returns:
        The dict of `accuracies`, the predictions (classifier -> int64 [n]) and the labels int64 [n] behind it.
    """
    prep, batch_size, means = experiment.prep, experiment.config.eval_batch_size, {}
    if loaded.exemplars is not None:
        means["nme"] = class_means(loaded.model, loaded.exemplars, phase.seen, prep, batch_size)
    if experiment.config.ncm:
        all_data = experiment.train_data(list(experiment.protocol.phases[: phase.index + 1]))
        means["ncm"] = class_means(loaded.model, all_data, phase.seen, prep, batch_size)
    test = experiment.test_data(phase)
    predictions = predict(loaded.model, test.images, means, prep, batch_size)
    origin = torch.from_numpy(experiment.protocol.phase_of_label()).to(experiment.device)
    return accuracies(predictions, test.labels, origin), predictions, test.labels


def entry(phase: Phase, file: Path, loaded: Loaded, found: dict[str, dict]) -> dict[str, Any]:
    """The entry of a phase in evaluation.json, with the keys of results.json."""
    counts = [] if loaded.exemplars is None else torch.bincount(loaded.exemplars.labels).tolist()
    return {
        "phase": phase.index,
        "classes_seen": phase.seen,
        "file": file.name,
        "weight_transfer": any(isinstance(module, ScaledConv2d) for module in loaded.model.modules()),
        "exemplars_per_class": {"min": min(counts), "max": max(counts)} if counts else None,
        "accuracy": found["accuracy"],
        "phase0_accuracy": found["phase0_accuracy"],
        "accuracy_by_phase_of_origin": found["by_origin"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options, status, taken = parse_args(arguments), 0, set()
    alone = options.out is not None and len(options.targets) == 1
    for path in options.targets:
        try:
            check(options)
            target = target_of(path, options)
            folder = options.out if alone else (options.out or Path("eval_results")) / target.name
            if folder in taken:
                raise UsageError(
                    f"{path}: {folder} holds the results of another one of this name; evaluate it on its own"
                )
            taken.add(folder)
            result, text = evaluate(target, folder)
        except UsageError as error:
            print(f"evaluate.py: {error}", file=sys.stderr)
            status = 2
            continue
        print(f"\n{text}\nwritten: {folder / 'evaluation.json'}, evaluation.md, confusion.png\n")
        if result["missing_phases"]:
            missing = ", ".join(map(str, result["missing_phases"]))
            print(
                f"evaluate.py: {path}: no checkpoint of phase {missing}; averages are over the others", file=sys.stderr
            )
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
