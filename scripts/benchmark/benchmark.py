"""Speed and memory, each as a ratio to a plain pipeline (plain.py) measured by turns in the same run.

    python scripts/benchmark/benchmark.py train       images/s of phase 0 and of an incremental step of each baseline
    python scripts/benchmark/benchmark.py select      features and herding of the exemplars of phase 0
    python scripts/benchmark/benchmark.py evaluate    features, CNN and NME accuracy of the test set
    python scripts/benchmark/benchmark.py protocol    a whole run of N = 5 phases (--epochs of each)
    python scripts/benchmark/benchmark.py unroll      the exemplar gradient, against the plain unroll
    python scripts/benchmark/benchmark.py all         all of them, one after the other

Ratios are medians over the turns, with the smallest and the largest. --out writes everything measured as JSON.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from ours import Ours, begun
from plain import Plain
from timing import Times, by_turns, compared
from unroll import unroll

from mnemonics.baselines import BASELINES
from mnemonics.data.batches import LabelledImages
from mnemonics.data.scenario import Scenario
from mnemonics.engine.device import environment
from mnemonics.engine.errors import command
from mnemonics.engine.files import write_json


@command("benchmark.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="+", choices=(*PARTS, "all"), help="what to measure")
    add("--dataset", default="cifar100", help="as in main.py (%(default)s)")
    add("--data_dir", default="data", help="as in main.py (%(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    add("--network", default="resnet32", help="(%(default)s)")
    add("--images", type=int, default=5120, help="images of a timed turn of training (%(default)s)")
    add("--repeats", type=int, default=3, help="timed turns, after one to warm up (%(default)s)")
    add("--baselines", nargs="+", default=list(BASELINES), help="those of train (%(default)s)")
    add("--epochs", type=int, default=2, help="epochs of each phase in protocol (%(default)s)")
    add("--batch", type=int, default=100, help="exemplars and validation images in unroll (%(default)s)")
    add("--steps", type=int, nargs="+", default=[4, 16, 64], help="values of K in unroll (%(default)s)")
    add("--max_plain_gib", type=float, default=16.0, help="skip plain in unroll above this (%(default)s)")
    add("--out", type=Path, help="write what was measured as JSON")
    args = parser.parse_args(arguments)
    facts = environment(torch.device(args.device))
    print(f"{facts['device_name']}, {facts['cpu_count']} CPUs, {facts['threads']} threads, torch {facts['torch']}")
    results = {"environment": facts, "arguments": {k: str(v) for k, v in vars(args).items()}}
    for name in PARTS if "all" in args.what else args.what:
        results[name] = PARTS[name](args)
        if args.out:
            write_json(args.out, results)


def prepared(args: argparse.Namespace, phase: int, *more: str) -> tuple[Scenario, dict[str, Ours | Plain]]:
    """A run of N = 5 phases where the training of `phase` begins: its data and settings, and both ways to go on."""
    given = [f"--{name}={getattr(args, name)}" for name in ("dataset", "data_dir", "device", "network")]
    scenario, model, baseline = begun(["--nb_phases", "5", *given, *more], phase)
    return scenario, {"ours": Ours(scenario, model, baseline), "plain": Plain(scenario, model, baseline)}


def timed(sides: dict[str, Ours | Plain], piece: str, *arguments: object, repeats: int = 0) -> Times:
    """Seconds of a piece of a run, by turns; without `repeats` once, and nothing before to warm up."""
    functions = {name: partial(getattr(side, piece), *arguments) for name, side in sides.items()}
    return by_turns(functions, repeats or 1, warm_up=repeats > 0)


def images_of(scenario: Scenario, last_phase: int, count: int) -> LabelledImages:
    """So many training images at random, of the classes up to those of `last_phase`."""
    data = scenario.train_data(list(scenario.protocol.phases[: last_phase + 1]))
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]]
    return LabelledImages(data.images.contiguous(), data.labels)


def train(args: argparse.Namespace) -> dict:
    """Training of phase 0, then of phase 1 with the loss of each baseline, teacher included."""
    results = {}
    for phase, name in [(0, "lucir"), *((1, name) for name in args.baselines)]:
        scenario, sides = prepared(args, phase, "--baseline", name)
        data = images_of(scenario, phase, args.images)
        part = f"phase {phase}" + (f", {name}" if phase else "")
        times = timed(sides, "train_epoch", data, repeats=args.repeats)
        results[part] = compared(f"train, {part}", times, len(data))
    return results


def select(args: argparse.Namespace) -> dict:
    """Exemplars of phase 0: features of all its images, then herding of 20 of each class."""
    scenario, sides = prepared(args, 0)
    phase, seconds = scenario.protocol.phases[0], sides["ours"].herding_seconds
    data = scenario.train_data([phase])
    result = compared(f"select, {phase.seen} classes", timed(sides, "select", data, 20), len(data))
    print(f"  of which our herding, after the features: {seconds[-1]:.2f} s")
    return result | {"herding_seconds": seconds}


def evaluate(args: argparse.Namespace) -> dict:
    """CNN and NME accuracy on all test images, the means included."""
    scenario, sides = prepared(args, 5)
    phases = scenario.protocol.phases
    data, test = scenario.train_data(list(phases)), scenario.test_data(phases[-1])
    exemplars = data[torch.cat([(data.labels == c).nonzero()[:20, 0] for c in range(phases[-1].seen)])]
    return compared("evaluate", timed(sides, "evaluate", exemplars, test, repeats=args.repeats), len(test))


def protocol(args: argparse.Namespace) -> dict:
    """A whole run, LwF's loss with herding exemplars, by main.py's `run` and by the plain pipeline: once each."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--method baseline --baseline icarl --epochs {args.epochs} --out {folder}"
        _, sides = prepared(args, 0, *flags.split())
        times = timed(sides, "protocol")
    result = compared(f"protocol, {args.epochs} epochs a phase", times, 3600, "runs/hour")
    minutes = [f"{name} {seconds / 60:.2f}" for name, (seconds,) in times.items()]
    print(f"  minutes: {', '.join(minutes)}")
    return result | {"accuracies": {name: side.accuracies for name, side in sides.items()}}


PARTS = {part.__name__: part for part in (train, select, evaluate, protocol, unroll)}


if __name__ == "__main__":
    sys.exit(main())
