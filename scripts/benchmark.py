"""Speed and memory, each as a ratio to a plain reference measured in the same run.

    python scripts/benchmark.py unroll      the exemplar gradient, against differentiating through the whole graph

Times are the median of interleaved repetitions. Peak memory is what a step takes beyond what was there before it: of
allocated tensors on a CUDA device, of resident pages of a process of its own on a CPU.
"""

import argparse
import multiprocessing
import re
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnemonics.exemplars.unroll import GraphedSteps, Steps, plain_unrolled_gradient, unrolled_gradient
from mnemonics.models import make_network
from mnemonics.runtime import environment, prepare

METHODS = {"ours": unrolled_gradient, "plain": plain_unrolled_gradient}
NO_MEMORY = "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("unroll",), help="what to measure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--network", default="resnet32", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=100, help="exemplars and validation images (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64], help="values of K (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions at the smallest K (%(default)s)")
    parser.add_argument("--max_plain_gib", type=float, default=16.0, help="skip plain above this (%(default)s)")
    args = parser.parse_args()
    benchmark_unroll(args)


def benchmark_unroll(args: argparse.Namespace) -> None:
    """Print time and peak memory of one outer step for each K, ours and plain."""
    facts = environment(torch.device(args.device))
    print(f"one outer step, {args.network}, 32x32, batch {args.batch}, float32, {facts['device_name']}, "
          f"{facts['threads']} threads, torch {facts['torch']}")  # fmt: skip
    print(f"{'K':>4} {'ours s':>8} {'plain s':>8} {'ratio':>6} {'ours MiB':>9} {'plain MiB':>10}")
    first, plain_per_step = {}, 0.0
    for K in args.steps:
        methods = ["ours"] if plain_per_step * K > args.max_plain_gib * 2**30 else ["ours", "plain"]
        memory = {name: isolated(peak_memory, args, name, K) for name in methods}
        seconds = step_seconds(args, methods, K)
        first = first or memory
        plain_per_step = memory.get("plain", 0.0) / K or plain_per_step
        ratio = f"{seconds['ours'] / seconds['plain']:.2f}" if "plain" in seconds else NO_MEMORY
        shown = [f"{seconds[n]:.2f}" if n in seconds else NO_MEMORY for n in METHODS]
        mebibytes = [f"{memory[n] / 2**20:.0f}" if n in memory else NO_MEMORY for n in METHODS]
        print(f"{K:>4} {shown[0]:>8} {shown[1]:>8} {ratio:>6} {mebibytes[0]:>9} {mebibytes[1]:>10}", flush=True)
    print(f"ours: peak memory at K = {K} is {memory['ours'] / first['ours']:.2f} x that at K = {args.steps[0]}")
    print(f"{NO_MEMORY}: plain would need about {plain_per_step * K / 2**30:.0f} GiB at K = {K}, skipped")


def make_step(args: argparse.Namespace, name: str, K: int):
    """A function that computes one exemplar gradient."""
    device = torch.device(args.device)
    prepare(device, deterministic=False)
    torch.manual_seed(0)
    model = make_network(args.network, 10, device).eval()
    x, xv = torch.randn(2, args.batch, 3, 32, 32, device=device)
    labels = torch.arange(args.batch, device=device) % 10
    parameters = dict(model.named_parameters())

    def loss(parameters, images):
        return F.cross_entropy(functional_call(model, parameters, (images,)), labels)

    steps = GraphedSteps(loss, parameters, x, ()) if name == "graphed" else Steps(loss, parameters)

    def step() -> None:
        METHODS[name](steps, lambda p: loss(p, xv), parameters, x, [()] * K, [0.01] * K)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def step_seconds(args: argparse.Namespace, methods: list[str], K: int) -> dict[str, float]:
    """Median seconds of a step for each method, measured by turns after one warm-up each."""
    steps = {name: make_step(args, name, K) for name in methods}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(1 + max(1, args.repeats * args.steps[0] // K)):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(args: argparse.Namespace, name: str, K: int) -> int:
    """Bytes that a step takes at its peak, beyond what is there after one on two images, which loads the libraries."""
    make_step(argparse.Namespace(**{**vars(args), "batch": 2}), "ours", 1)()
    step = make_step(args, name, K)
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = resident_bytes("VmRSS")
    step()
    return resident_bytes("VmHWM") - before


def resident_bytes(field: str) -> int:
    """Resident memory of this process (Linux): "VmRSS" now, "VmHWM" at its peak. The peak that getrusage gives starts
    at that of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024


def isolated(function, *arguments):
    """Call `function` in a fresh process: the peak of resident memory never falls in an old one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()
