"""Which settings of the exemplar level work: the measurements behind `--mnemonics_preset default`.

    python scripts/exemplar_study.py zero --data_dir data       one model of phase 0, many ways to make its exemplars
    python scripts/exemplar_study.py one --data_dir data        the same with a model of phase 1
    python scripts/exemplar_study.py runs --data_dir data       whole runs over six phases
    python scripts/exemplar_study.py gradients --data_dir data  how large the gradient of a pixel is, after phase 0
    python scripts/exemplar_study.py table                      what was measured so far, as Markdown

On real CIFAR-100, by default with iCaRL's loss (--flags). "one": a model is trained once on 10 classes, then on 10 new
ones and 20 random exemplars of each old one; for every row the exemplars of that phase are made, the model is
fine-tuned on nothing but the exemplars and tested on the test images of all 20 classes: the yardstick of the method.
"zero" is the same after phase 0, with its 10 classes. "next": exemplars are made after phase 0 (50 classes), the next
phase (10) is trained with them, and the model fine-tuned and tested: what exemplars are worth later on. "runs": phases
of 10 and 5 x 2 classes. A row is a set of main.py's flags on top of SETTINGS (in "next" and "runs": of the defaults).
Results are appended to a JSON-lines file; rows that
are in it already are skipped, so that the study can be stopped and continued, or shared out with --rows.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import time
from pathlib import Path

import torch

from mnemonics.algorithm import (
    evaluate,
    finetune,
    learn_classes,
    mean_change,
    renew_exemplars,
    run_phase,
    select_exemplars,
    split_off,
)
from mnemonics.baselines import BASELINES
from mnemonics.config.fields import ExperimentConfig
from mnemonics.config.presets import resolved
from mnemonics.data.batches import LabelledImages, balanced_batches
from mnemonics.engine import files as checkpoint
from mnemonics.engine.device import environment, seed_of
from mnemonics.engine.log import RunLog
from mnemonics.engine.progress import Progress
from mnemonics.exemplars.base_level import BaseLevel, BilevelSettings, NetworkInput
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.experiment.state import Experiment, State, parse_args, set_up
from mnemonics.models import make_network, restore_network
from mnemonics.training import finetune_on_exemplars

CLASSES = {"next": (50, 10), "runs": (10, 2)}  # of phase 0, of each later phase; else 10 and 10
FLAGS = "--baseline icarl --no-weight_transfer"  # of results without the field "flags"
THEN = (  # defaults when all but "next" was measured
    "--no-mnemonics_augment --mnemonics_start random --mnemonics_disturb 0 --mnemonics_base new"
)
NEXT_FLAGS = "--baseline lucir --weight_transfer"
SETTINGS = (
    "--mnemonics_steps 15 --mnemonics_lr 0.01 --mnemonics_batch_size 128 --mnemonics_optimizer sgd "
    "--mnemonics_outer_lr 100 --mnemonics_epochs 20 --finetune_epochs 15"
)
ONE = [
    "--exemplars random",
    "--exemplars herding",
    "--no_adjust",
    "--no_adjust --mnemonics_base joint",
    "--exemplars mnemonics",
    "--no_adjust --mnemonics_outer_lr 1000",
    "--no_adjust --mnemonics_outer_lr 300",
    "--no_adjust --mnemonics_optimizer adam --mnemonics_outer_lr 0.003",
    "--no_adjust --mnemonics_optimizer adam --mnemonics_outer_lr 0.01",
    "--no_adjust --mnemonics_start herding",
    "--no_adjust --mnemonics_steps 5",
    "--no_adjust --mnemonics_steps 30",
    "--no_adjust --mnemonics_epochs 50",
    "--no_adjust --mnemonics_augment",
    "--finetune_augment --exemplars random",
    "--finetune_augment --exemplars herding",
    "--mnemonics_lr 0.03 --exemplars random",
    "--mnemonics_lr 0.03 --exemplars herding",
    "--no_adjust --mnemonics_lr 0.03",
    "--no_adjust --mnemonics_base joint --mnemonics_outer_lr 300",
    "--no_adjust --mnemonics_base joint --mnemonics_optimizer adam --mnemonics_outer_lr 0.01",
    "--no_adjust --finetune_epochs 50",
    "--finetune_epochs 50 --exemplars random",
    "--finetune_epochs 50 --exemplars herding",
    "--finetune_epochs 5 --exemplars random",
    "--finetune_epochs 5 --exemplars herding",
    "--no_adjust --finetune_epochs 5",
    "--no_adjust --mnemonics_variant unroll-fc",
    "--no_adjust --mnemonics_variant class-mean",
    "--mnemonics_preset paper",
    "--mnemonics_preset paper --exemplars random",
    "--mnemonics_preset paper --exemplars herding",
]
FAR = "--mnemonics_epochs 100 --mnemonics_outer_lr 0.05"  # large moves
NEXT = [
    "--exemplars random",
    "--exemplars herding",
    "--exemplars mnemonics",
    "--mnemonics_variant class-mean --mnemonics_start random --mnemonics_disturb 0 " + FAR,
    "--mnemonics_variant class-mean --mnemonics_start random --mnemonics_disturb 0.3 " + FAR,
    "--exemplars random --nb_protos 40",
    "--exemplars random --nb_protos 100",
    "--no-mnemonics_augment --mnemonics_start random --mnemonics_disturb 0",
]
RUNS = [
    "--exemplars random",
    "--exemplars herding",
    "--exemplars mnemonics",
    "--no_adjust",
    "--mnemonics_base joint",
    "--mnemonics_base joint --no_adjust",
]
GRADIENTS = [
    "--mnemonics_batch_size 200",
    "--mnemonics_batch_size 200 --mnemonics_lr 0.03",
    "--mnemonics_preset paper",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "part", choices=("zero", "one", "next", "runs", "gradients", "table"), help="which part of the study"
    )
    parser.add_argument("--data_dir", default="data", help="where CIFAR-100 is (%(default)s)")
    parser.add_argument("--device", default="auto", help="as in main.py (%(default)s)")
    parser.add_argument("--network", default="resnet8", help="as in main.py (%(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each phase (%(default)s)")
    parser.add_argument("--nb_protos", type=int, default=20, help="as in main.py (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="exemplar seeds (%(default)s)")
    parser.add_argument("--rows", help="the rows to run, separated by semicolons (all)")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/study"), help="models and scratch (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/exemplar_study.jsonl"), help="results (%(default)s)")
    parser.add_argument("--flags", help=f'flags of main.py for all rows ({FLAGS}; "next": {NEXT_FLAGS})')
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    args = parser.parse_args()
    args.flags = args.flags or (NEXT_FLAGS if args.part == "next" else FLAGS)
    if args.part == "table":
        print(markdown([json.loads(line) for line in args.out.read_text().splitlines()]))
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    common = f"--data_dir {args.data_dir} --device {args.device} --network {args.network} --epochs {args.epochs} "
    first, later = CLASSES.get(args.part, (10, 10))
    common += f"--nb_protos {args.nb_protos} --nb_cl_fg {first} --nb_cl {later} {args.flags} "
    common += f"--out {args.work_dir}"
    base = set_up(parse_args(common.split()))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [row.strip() for row in args.rows.split(";")]
        if args.rows
        else {"zero": ONE, "one": ONE, "next": NEXT, "runs": RUNS, "gradients": GRADIENTS}[args.part]
    )
    measure = {
        "zero": functools.partial(measure_one, 0),
        "one": functools.partial(measure_one, 1),
        "next": measure_next,
        "runs": measure_run,
        "gradients": measure_gradient,
    }[args.part]
    with RunLog(args.work_dir) as log:
        for seed in args.seeds:
            for row in rows:
                settings = "" if args.part in ("next", "runs") or "--mnemonics_preset" in row else SETTINGS
                key = {"part": args.part, "network": args.network, "epochs": args.epochs, "flags": args.flags}
                key |= {"settings": settings, "row": row, "seed": seed}
                if is_done(args.out, key):
                    continue
                flags = f"{common} {'' if args.part == 'next' else THEN} {settings} {row} --random_seed {seed}"
                config = row_config(args.part, flags.split(), base.config.nb_phases)
                state = start_state(base, args.part, seed, args.work_dir, log)
                start = time.perf_counter()
                result = measure(dataclasses.replace(base, config=config), state, log)
                append(args.out, key | result | {"seconds": round(time.perf_counter() - start, 1),
                                                 "environment": environment(base.device)})  # fmt: skip
                log.line(f"seed {seed}: {row}: {result}")


def row_config(part: str, flags: list[str], nb_phases: int) -> ExperimentConfig:
    """The settings of a row. Before "next", old exemplars were adjusted unless --no_adjust was given, one flag was the
    batch size of base level and validation, one the augmentation of base level and fine-tuning."""
    given = parse_args(flags)
    if part != "next":
        given = dataclasses.replace(given, no_adjust=bool(given.no_adjust))
    config = dataclasses.replace(resolved(given), nb_phases=nb_phases)
    if part == "next" or "--mnemonics_val_batch_size" in flags:
        return config
    config = dataclasses.replace(config, mnemonics_val_batch_size=config.mnemonics_batch_size)
    return dataclasses.replace(config, finetune_augment=config.finetune_augment or config.mnemonics_augment)


def start_state(base: Experiment, part: str, seed: int, work_dir: Path, log: RunLog) -> State:
    """What the rows start from, trained once and kept: in "one" the model after the training of phase 1 and random
    exemplars of phase 0, the same for all seeds; in "zero", "next" and "gradients" that after the training of phase 0,
    also the same; in "runs" one per seed."""
    part = {"gradients": "zero"}.get(part, part)
    seed, last_phase = (seed if part == "runs" else 1993), (1 if part == "one" else 0)
    config = dataclasses.replace(base.config, random_seed=seed, exemplars="random")
    name = f"{config.baseline}_{config.weight_transfer}" if part == "one" else "phase0"
    path = work_dir / f"{part}_{config.network}_{config.epochs}_{name}_{seed}.pt"
    empty = ExemplarMemory.empty(base.source.image_size, base.device)
    if not path.exists():
        experiment, baseline = dataclasses.replace(base, config=config), BASELINES[config.baseline](config)
        torch.manual_seed(seed_of(seed, 0, "weights"))
        model = make_network(config.network, base.protocol.phases[0].seen, base.device)
        state = State(model, empty, empty, [])
        for phase in base.protocol.phases[: last_phase + 1]:
            new_data, held_out = split_off(experiment, baseline, phase)
            learn_classes(experiment, baseline, phase, new_data, held_out, state, log, Progress())
            if phase.index < last_phase:
                renew_exemplars(experiment, phase, new_data, experiment.config.nb_protos, state, Progress())
        checkpoint.save(path, {"model": state.model.state_dict(), "exemplars": vars(state.memory.data)})
    stored = checkpoint.load(path, base.device)
    model = restore_network(base.config.network, stored["model"], base.device)
    return State(model, ExemplarMemory(LabelledImages(**stored["exemplars"])), empty, [])


def measure_one(index: int, experiment: Experiment, state: State, log: RunLog) -> dict:
    """Make exemplars in phase `index`, fine-tune on them and test on all classes seen: accuracies before and after, in
    percent."""
    phase, baseline = experiment.protocol.phases[index], BASELINES[experiment.config.baseline](experiment.config)
    new_data, _ = split_off(experiment, baseline, phase)
    start, new, losses = renew_exemplars(experiment, phase, new_data, experiment.config.nb_protos, state, Progress())
    before = evaluate(experiment, phase, state)["accuracy"]
    draws = experiment.generator(phase, "fine-tuning")
    finetune_on_exemplars(state.model, state.memory, experiment.prep, experiment.config, draws, Progress())
    after = evaluate(experiment, phase, state)["accuracy"]
    return {"before": before, "after": after, "validation_loss": losses, "change_grey_levels": mean_change(start, new)}


def measure_next(experiment: Experiment, state: State, log: RunLog) -> dict:
    """Make exemplars in phase 0, train phase 1 with them, add random exemplars of its classes and fine-tune: accuracies
    on all classes seen, in percent, of nearest means after phase 0, and before and after the fine-tuning."""
    first, second = experiment.protocol.phases[:2]
    config, baseline = experiment.config, BASELINES[experiment.config.baseline](experiment.config)
    new_data, _ = split_off(experiment, baseline, first)
    start, new, losses = renew_exemplars(experiment, first, new_data, config.nb_protos, state, Progress())
    facts = {"phase0": evaluate(experiment, first, state)["accuracy"], "validation_loss": losses}
    facts["change_grey_levels"] = mean_change(start, new)
    later = dataclasses.replace(experiment, config=dataclasses.replace(config, exemplars="random"))
    new_data, held_out = split_off(later, baseline, second)
    learn_classes(later, baseline, second, new_data, held_out, state, log, Progress())
    renew_exemplars(later, second, new_data, config.nb_protos, state, Progress())
    before = evaluate(later, second, state)
    finetune(later, baseline, second, state, Progress())
    after = evaluate(later, second, state)
    by_origin = {when: result["by_origin"] for when, result in (("before", before), ("after", after))}
    return facts | {"before": before["accuracy"], "after": after["accuracy"], "by_origin": by_origin}


def measure_gradient(experiment: Experiment, state: State, log: RunLog) -> dict:
    """The first exemplar gradient after phase 0, for random images, in units of the network's input; and how far the
    schedule of the pixels could take the mean and the most moved pixel along it with SGD, in grey levels."""
    config, prep, phase = experiment.config, experiment.prep, experiment.protocol.phases[0]
    data, draws = experiment.train_data([phase]), experiment.generator(phase, "new exemplars")
    start = select_exemplars(experiment, phase, state.model, data, config.nb_protos)
    base, labels = BaseLevel(state.model, BilevelSettings.of(config)), start.labels
    chosen = data[next(balanced_batches(data.labels, config.mnemonics_batch_size, 1, draws))]
    exemplars, validation = (NetworkInput(prep.plain(x.images), x.labels) for x in (start, chosen))
    _, gradient, _ = base.gradient(exemplars, validation, base.draw(labels, draws), 0)
    gradient = gradient.abs()
    distance = config.mnemonics_outer_lr * config.mnemonics_epochs * sum(0.5**k for k in range(5)) / 5
    grey_levels = (gradient * (255 * prep.std[:, None, None])) * distance
    return {
        "gradient": {"mean": gradient.mean().item(), "max": gradient.max().item()},
        "sgd_grey_levels": {"mean": grey_levels.mean().item(), "max": grey_levels.max().item()},
    }


def measure_run(experiment: Experiment, state: State, log: RunLog) -> dict:
    """Six phases from the trained model of phase 0: accuracies after each, in percent."""
    phases = experiment.protocol.phases[:6]
    baseline = BASELINES[experiment.config.baseline](experiment.config)
    new_data, _ = split_off(experiment, baseline, phases[0])
    renew_exemplars(experiment, phases[0], new_data, experiment.config.nb_protos, state, Progress())
    results = [evaluate(experiment, phases[0], state)["accuracy"]]
    for phase in phases[1:]:
        run_phase(experiment, baseline, phase, state, log, Progress())
        results.append(state.phases[-1]["accuracy"])
    mean = {name: round(sum(r[name] for r in results) / len(results), 2) for name in ("cnn", "nme")}
    return {"phases": results, "average_accuracy": mean}


def markdown(results: list[dict]) -> str:
    """A table per part of the study: mean and, over several seeds, standard error of each row."""
    lines = []
    for part, column in (("zero", "after"), ("one", "after"), ("runs", "average_accuracy")):
        rows = [r for r in results if r["part"] == part]
        if not rows:
            continue
        lines += [f"| {part}: flags | n | CNN % | NME % | validation loss: start, optimised, rounded | minutes |"]
        lines += ["|---|---|---|---|---|---|"]
        for which in dict.fromkeys(map(row_key, rows)):
            same = [r for r in rows if row_key(r) == which]
            accuracy = [mean_and_error([r[column][name] for r in same]) for name in ("cnn", "nme")]
            losses = [r["validation_loss"] for r in same if r.get("validation_loss")]
            shown = [f"{statistics.mean(x[name] for x in losses):.3f}" for name in losses[0]] if losses else ["-"]
            minutes = statistics.mean(r["seconds"] for r in same) / 60
            lines.append(f"| `{which}` | {len(same)} | {' | '.join(accuracy)} | {', '.join(shown)} | {minutes:.1f} |")
        lines.append("")
    lines += next_table([r for r in results if r["part"] == "next"])
    return "\n".join([*lines, *gradient_table([r for r in results if r["part"] == "gradients"])]).rstrip()


def next_table(rows: list[dict]) -> list[str]:
    """Lines of the table of the part "next"; none without rows."""
    lines = ["| next: flags | n | NME %, phase 0 | CNN %, phase 1, before fine-tuning | after it | NME % | minutes |"]
    lines += ["|---|---|---|---|---|---|---|"]
    columns = (("phase0", "nme"), ("before", "cnn"), ("after", "cnn"), ("after", "nme"))
    for which in dict.fromkeys(map(row_key, rows)):
        same = [r for r in rows if row_key(r) == which]
        cells = [mean_and_error([r[when][name] for r in same]) for when, name in columns]
        minutes = statistics.mean(r["seconds"] for r in same) / 60
        lines.append(f"| `{which}` | {len(same)} | {' | '.join(cells)} | {minutes:.1f} |")
    return [*lines, ""] if rows else []


def gradient_table(rows: list[dict]) -> list[str]:
    """Lines of the table of the part "gradients"; none without rows."""
    lines = ["| gradients: flags | seed | gradient: mean, max | grey levels by SGD: mean, max |", "|---|---|---|---|"]
    for row in rows:
        gradient, moved = (
            f"{row[name]['mean']:.1e}, {row[name]['max']:.1e}" for name in ("gradient", "sgd_grey_levels")
        )
        lines.append(f"| `{row_key(row)}` | {row['seed']} | {gradient} | {moved} |")
    return lines if rows else []


def row_key(result: dict) -> str:
    """What tells the rows of the table apart: the flags of the row, before them whatever is not as in most rows."""
    usual_flags, usual_epochs = (NEXT_FLAGS, 12) if result["part"] == "next" else (FLAGS, 30)
    flags, epochs = result.get("flags", FLAGS), result["epochs"]
    others = ([] if flags == usual_flags else [flags]) + ([] if epochs == usual_epochs else [f"--epochs {epochs}"])
    return " ".join([*others, result["row"]])


def mean_and_error(values: list[float]) -> str:
    """Mean, and standard error of the mean where there is more than one value."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def is_done(path: Path, key: dict) -> bool:
    lines = path.read_text().splitlines() if path.exists() else []
    return any(key.items() <= ({"flags": FLAGS} | json.loads(line)).items() for line in lines)


def append(path: Path, result: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
