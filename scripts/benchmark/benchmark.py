"""Speed and memory, each as a ratio to a plain pipeline (plain.py) measured by turns in the same run.

    python scripts/benchmark/benchmark.py train       images/s of phase 0 and of an incremental step of each baseline
    python scripts/benchmark/benchmark.py protocol    a whole run of N = 5 phases (--epochs of each)
    python scripts/benchmark/benchmark.py unroll      the exemplar gradient, against the plain unroll
    python scripts/benchmark/benchmark.py all         all of them, one after the other

Ratios are medians over the turns, with the smallest and the largest. --out writes everything measured as JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from plain import Plain
from timing import Times, by_turns, compared
from torch import nn
from unroll import unroll

from mnemonics import algorithm
from mnemonics.baselines import BASELINES
from mnemonics.baselines.base import Baseline
from mnemonics.data.batches import LabelledImages, ResidentBatches, batch_sizes
from mnemonics.data.scenario import Scenario
from mnemonics.engine.device import environment
from mnemonics.engine.errors import command
from mnemonics.engine.files import write_json
from mnemonics.experiment.state import parse_args, set_up
from mnemonics.models import make_network
from mnemonics.training import sgd_step


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
    add("--repeats", type=int, default=3, help="timed turns, after one to warm up but for protocol (%(default)s)")
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


def begun(args: argparse.Namespace, phase: int, *more: str) -> tuple[Scenario, nn.Module, Baseline]:
    """A run of N = 5 phases where the training of `phase` begins; every phase before it was skipped."""
    given = [f"--{name}={getattr(args, name)}" for name in ("dataset", "data_dir", "device", "network")]
    scenario = set_up(parse_args(["--nb_phases", "5", *given, *more])).scenario
    phases, config = scenario.protocol.phases[: phase + 1], scenario.config
    model = make_network(config.network, phases[0].seen, scenario.device)
    baseline = BASELINES[config.baseline](config)
    for p in phases:
        baseline.begin_phase(model, p, scenario.train_data([p])[:256], scenario.prep)
    return scenario, model, baseline


def epoch_of(scenario: Scenario, model: nn.Module, baseline: Baseline, data: LabelledImages) -> Callable[[], None]:
    """A function that trains for an epoch of `data` as a run does."""
    batches, config = ResidentBatches(data, scenario.prep), scenario.config
    _, step = sgd_step(model.train(), baseline, batches, config)
    sizes = batch_sizes(len(data), config.train_batch_size, "keep")  # as plain.py

    def epoch() -> None:
        for batch in batches.epoch(sizes, torch.Generator(scenario.device).manual_seed(0)):
            step(*batch)

    return epoch


def train(args: argparse.Namespace) -> dict:
    """Training of phase 0, then of phase 1 with the loss of each baseline, teacher included."""
    results = {}
    for phase, name in [(0, "lucir"), *((1, name) for name in args.baselines)]:
        scenario, model, baseline = begun(args, phase, "--baseline", name)
        plain = Plain(scenario, model, baseline)  # has a copy of the network, which ours is going to change
        data = scenario.train_data(list(scenario.protocol.phases[: phase + 1]))
        data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: args.images]]
        functions = {"ours": epoch_of(scenario, model, baseline, data), "plain": partial(plain.train_epoch, data)}
        part = f"phase {phase}" + (f", {name}" if phase else "")
        results[part] = compared(f"train, {part}", by_turns(functions, args.repeats), len(data))
    return results


def protocol(args: argparse.Namespace) -> dict:
    """Whole runs, LwF's loss with herding exemplars, by main.py's `run` and by the plain pipeline."""
    times: Times = {"ours": [], "plain": []}
    for turn in range(1, args.repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            flags = f"--method baseline --baseline icarl --epochs {args.epochs} --out {folder}"
            plain = Plain(*begun(args, 0, *flags.split()))
            functions = {"ours": partial(algorithm.run, plain.config), "plain": plain.protocol}
            for name, seconds in by_turns(functions, repeats=1, warm_up=False).items():
                times[name] += seconds
                print(f"  turn {turn}: {name} {seconds[0] / 60:.2f} minutes", flush=True)
            phases = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))["phases"]
    result = compared(f"protocol, {args.epochs} epochs a phase", times, 3600, "runs/hour")
    ours = [[phase["accuracy"][name] for name in ("cnn", "nme")] for phase in phases]
    return result | {"accuracies": {"ours": ours, "plain": plain.accuracies}}


PARTS = {part.__name__: part for part in (train, protocol, unroll)}


if __name__ == "__main__":
    sys.exit(main())
