"""Speed and memory, each as a ratio to a plain pipeline (benchmark_plain.py) measured by turns in the same run.

    python scripts/benchmark/benchmark.py train       images/s of phase 0 and of an incremental step of each baseline
    python scripts/benchmark/benchmark.py augment     crop, mirror and normalise
    python scripts/benchmark/benchmark.py select      features and herding of the exemplars of phase 0
    python scripts/benchmark/benchmark.py evaluate    features, CNN and NME accuracy of the test set
    python scripts/benchmark/benchmark.py protocol    a whole run of N = 5 phases (--epochs of each)
    python scripts/benchmark/benchmark.py jobs        training of several runs at once on one device
    python scripts/benchmark/benchmark.py unroll      the exemplar gradient, against the plain unroll
    python scripts/benchmark/benchmark.py all         all of them, one after the other

Ratios are medians over the turns, with the smallest and the largest. --out writes everything measured as JSON.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import benchmark_plain as plain
import benchmark_unroll
import torch
from benchmark_timing import by_turns, compared, floor, synchronize

from mnemonics import training
from mnemonics.algorithm import run
from mnemonics.baselines import BASELINES
from mnemonics.data.batches import ResidentBatches
from mnemonics.engine import files as checkpoint
from mnemonics.engine.device import environment, peak_memory_bytes
from mnemonics.evaluation import class_means, features_of, predict
from mnemonics.exemplars.selection import herding_selection
from mnemonics.experiment.state import Experiment, parse_args, set_up
from mnemonics.models import make_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*PARTS, "all"), help="what to measure")
    parser.add_argument("--dataset", default="cifar100", help="as in main.py (%(default)s)")
    parser.add_argument("--data_dir", default="data", help="as in main.py (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--network", default="resnet32", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=5120, help="images of a timed turn of training (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns, after one to warm up (%(default)s)")
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), help="those of train (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each phase in protocol (%(default)s)")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4, 8], help="runs at once in jobs (%(default)s)")
    parser.add_argument("--out", type=Path, help="write what was measured as JSON")
    benchmark_unroll.add_arguments(parser)
    args = parser.parse_args()
    facts = environment(torch.device(args.device))
    print(f"{facts['device_name']}, {facts['cpu_count']} CPUs, {facts['threads']} threads, torch {facts['torch']}")
    results = {"environment": facts, "arguments": {k: str(v) for k, v in vars(args).items()}}
    for name in PARTS if args.what == "all" else [args.what]:
        results[name] = PARTS[name](args)
        if args.out:
            checkpoint.write_json(args.out, results)


def experiment_of(args: argparse.Namespace, *flags: str) -> Experiment:
    """The data and settings of a run with N = 5 phases."""
    return set_up(parse_args([*common_flags(args), *flags]))


def common_flags(args: argparse.Namespace) -> list[str]:
    names = ("dataset", "data_dir", "device", "network")
    return ["--nb_phases", "5", *(word for name in names for word in (f"--{name}", str(getattr(args, name))))]


def benchmark_train(args: argparse.Namespace) -> dict:
    """Training of phase 0, then of phase 1 with the loss of each baseline, teacher included."""
    results = []
    for phase_index, name in [(0, "lucir"), *((1, name) for name in args.baselines)]:
        experiment = experiment_of(args, "--baseline", name)
        turns, model, data = training_turns(experiment, phase_index, args.images)
        if phase_index == 0:
            batch = experiment.prep.plain(data.images[: experiment.config.train_batch_size])
            bf16 = experiment.device.type == "cuda"
            results.append(floor(plain.contiguous(model).train(), batch, experiment.device, bf16))
        what = f"train, phase {phase_index}" + (f", {name}" if phase_index else "")
        results.append(compared(what, by_turns(turns, args.repeats), len(data), "images/s"))
    return {"results": results}


def training_turns(experiment: Experiment, phase_index: int, images: int) -> tuple[dict, torch.nn.Module, object]:
    """One epoch over `images` images as ours and plain train it; the network and the data."""
    config, prep, phases = experiment.config, experiment.prep, experiment.protocol.phases
    model = make_network(config.network, phases[0].seen, experiment.device)
    baseline = BASELINES[config.baseline](config)
    for phase in phases[: phase_index + 1]:
        baseline.begin_phase(model, phase, experiment.train_data([phase])[:256], prep)
    data = experiment.train_data(list(phases[: phase_index + 1]))
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:images]]
    data = type(data)(data.images.contiguous(), data.labels)
    reference = plain.contiguous(model)
    optimizer = plain.sgd(reference, baseline, config)
    batches = plain.loader(experiment, data, config.train_batch_size, training=True)
    model.train()
    resident = ResidentBatches(data, prep)
    _, step = training.sgd_step(model, baseline, resident, config)
    draws = torch.Generator(experiment.device).manual_seed(0)

    def ours() -> None:
        for draw in resident.epoch(config.train_batch_size, draws):
            step(*draw)
        synchronize(experiment.device)

    def plainly() -> None:
        plain.train_epoch(reference, baseline, optimizer, batches, experiment.device)

    return {"ours": ours, "plain": plainly}, model, data


def benchmark_augment(args: argparse.Namespace) -> dict:
    """Augmentation alone; the plain one in this process, without workers."""
    experiment = experiment_of(args)
    data, prep = experiment.train_data(list(experiment.protocol.phases))[: args.images], experiment.prep
    draws, resident = torch.Generator(experiment.device).manual_seed(0), ResidentBatches(data, prep)
    batches = plain.loader(experiment, data, 128, training=True, workers=0)

    def ours() -> None:
        for draw in resident.epoch(128, draws):
            resident.network_input(*draw)
        synchronize(experiment.device)

    def plainly() -> None:
        for images, _ in batches:
            images.to(experiment.device)

    times = by_turns({"ours": ours, "plain": plainly}, args.repeats)
    return compared("augment", times, len(data), "images/s")


def benchmark_select(args: argparse.Namespace) -> dict:
    """Exemplars of phase 0: features of all its images, then herding of 20 of each class."""
    experiment = experiment_of(args)
    phase, size = experiment.protocol.phases[0], experiment.config.eval_batch_size
    data, model = experiment.train_data([phase]), make_network(args.network, phase.seen, experiment.device)
    reference, herding_seconds = plain.contiguous(model), []

    def ours() -> None:
        features = features_of(model, data.images, experiment.prep, size)
        synchronize(experiment.device)
        start = time.perf_counter()
        herding_selection(features, data.labels, 20)
        synchronize(experiment.device)
        herding_seconds.append(time.perf_counter() - start)

    functions = {"ours": ours, "plain": lambda: plain.select(experiment, reference, data, 20, size)}
    times = by_turns(functions, 1, warm_up=False)
    result = compared(f"select, {phase.seen} classes", times, len(data), "images/s")
    print(f"  of which our herding, after the features: {herding_seconds[-1]:.2f} s")
    return result | {"herding_seconds": herding_seconds}


def benchmark_evaluate(args: argparse.Namespace) -> dict:
    """CNN and NME accuracy on all test images, the means included."""
    experiment = experiment_of(args)
    phase, size, prep = experiment.protocol.phases[-1], experiment.config.eval_batch_size, experiment.prep
    test, model = experiment.test_data(phase), make_network(args.network, phase.seen, experiment.device)
    everything = experiment.train_data(list(experiment.protocol.phases))
    exemplars = everything[torch.cat([(everything.labels == c).nonzero()[:20, 0] for c in range(phase.seen)])]
    reference = plain.contiguous(model)

    def ours() -> None:
        means = class_means(model, exemplars, phase.seen, prep, size)
        predict(model, test.images, {"nme": means}, prep, size)
        synchronize(experiment.device)

    def plainly() -> None:
        plain.cnn_accuracy(reference, plain.loader(experiment, test, size), experiment.device)
        plain.nme_accuracy(experiment, reference, exemplars, test, size)

    times = by_turns({"ours": ours, "plain": plainly}, args.repeats)
    return compared("evaluate", times, len(test), "images/s")


def benchmark_protocol(args: argparse.Namespace) -> dict:
    """A whole run, LwF's loss with herding exemplars, by main.py's `run` and by the plain pipeline: once each."""
    flags = f"--method baseline --baseline icarl --epochs {args.epochs}".split()
    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_of(args, *flags, "--out", folder)
        baseline = BASELINES["icarl"](experiment.config)
        model = make_network(args.network, experiment.protocol.phases[0].seen, experiment.device)
        accuracies: dict[str, object] = {}

        def ours() -> None:
            results, _ = run(parse_args([*common_flags(args), *flags, "--out", folder]))
            accuracies["ours"] = [[p["accuracy"]["cnn"], p["accuracy"]["nme"]] for p in results["phases"]]

        def plainly() -> None:
            accuracies["plain"] = plain.protocol(experiment, baseline, plain.contiguous(model))

        times = by_turns({"ours": ours, "plain": plainly}, 1, warm_up=False)
    peak = peak_memory_bytes(experiment.device)
    result = compared(f"protocol, {args.epochs} epochs a phase", times, 3600, "runs/hour")
    minutes = {name: values[0] / 60 for name, values in times.items()}
    print(f"  minutes: ours {minutes['ours']:.2f}, plain {minutes['plain']:.2f}; peak memory {peak / 1e9:.2f} GB")
    return result | {"accuracies": accuracies, "peak_memory_bytes": peak}


def benchmark_jobs(args: argparse.Namespace) -> dict:
    """Images/s of phase-0 training of all processes together, for each number of them."""
    rows = []
    for jobs in args.jobs:
        with multiprocessing.get_context("spawn").Pool(jobs, initializer=share_cores, initargs=(jobs,)) as pool:
            speeds = pool.map(train_for_a_while, [args] * jobs, chunksize=1)
        rows.append({"jobs": jobs, "images_per_second": speeds})
        print(f"jobs, {jobs} at once: {sum(speeds):,.0f} images/s together", flush=True)
    return {"rows": rows}


def share_cores(jobs: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))


def train_for_a_while(args: argparse.Namespace) -> float:
    """Images/s of this process over the timed turns."""
    turns, _, data = training_turns(experiment_of(args), 0, args.images)
    times = by_turns({"ours": turns["ours"]}, args.repeats)["ours"]
    return len(data) * len(times) / sum(times)


PARTS: dict[str, Callable[[argparse.Namespace], dict]] = {
    "train": benchmark_train,
    "augment": benchmark_augment,
    "select": benchmark_select,
    "evaluate": benchmark_evaluate,
    "protocol": benchmark_protocol,
    "jobs": benchmark_jobs,
    "unroll": benchmark_unroll.benchmark_unroll,
}


if __name__ == "__main__":
    main()
