"""`benchmark.py unroll`: the exemplar gradient, against differentiating through the whole unrolled graph.

Peak memory is what a step takes beyond what was there before it: of allocated tensors on a CUDA device, of resident
pages of a process of its own on a CPU.
"""

import argparse
import multiprocessing
import re
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmark_timing import by_turns, synchronize
from torch.func import functional_call

from mnemonics.engine.device import environment, prepare
from mnemonics.exemplars.unroll import GraphedSteps, Steps, plain_unrolled_gradient, unrolled_gradient
from mnemonics.models import make_network

METHODS = {"ours": unrolled_gradient, "graphed": unrolled_gradient, "plain": plain_unrolled_gradient}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=100, help="exemplars and validation images (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64], help="values of K (%(default)s)")
    parser.add_argument("--max_plain_gib", type=float, default=16.0, help="skip plain above this (%(default)s)")


def benchmark_unroll(args: argparse.Namespace) -> dict:
    """Print time and peak memory of one outer step for each K: ours, on CUDA also as CUDA graphs, and plain."""
    facts = environment(torch.device(args.device))
    print(f"one outer step, {args.network}, 32x32, batch {args.batch}, float32, {facts['device_name']}, "
          f"{facts['threads']} threads, torch {facts['torch']}")  # fmt: skip
    names = ["ours", "graphed", "plain"] if args.device.startswith("cuda") else ["ours", "plain"]
    print(f"{'K':>4}", *(f"{name:>9} s {name:>9} MiB" for name in names), "  ours / plain")
    rows, plain_per_step = [], 0.0
    for K in args.steps:
        methods = [n for n in names if n != "plain" or plain_per_step * K <= args.max_plain_gib * 2**30]
        memory = {name: isolated(peak_memory, args, name, K) for name in methods}
        repeats = max(1, args.repeats * args.steps[0] // K)
        times = by_turns({name: make_step(args, name, K) for name in methods}, repeats)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        plain_per_step = memory.get("plain", 0.0) / K or plain_per_step
        cells = [
            f"{seconds[n]:11.3f} {memory[n] / 2**20:13.0f}" if n in methods else f"{'-':>11} {'-':>13}" for n in names
        ]
        ratio = seconds["ours"] / seconds["plain"] if "plain" in seconds else None
        print(f"{K:>4}", *cells, "-" if ratio is None else f"{ratio:8.2f}", flush=True)
        rows.append({"K": K, "seconds": times, "peak_bytes": memory, "ratio": ratio})
    growth = rows[-1]["peak_bytes"]["ours"] / rows[0]["peak_bytes"]["ours"]
    print(f"ours: peak memory at K = {K} is {growth:.2f} x that at K = {args.steps[0]}")
    if rows[-1]["ratio"] is None:
        print(f"-: plain would need about {plain_per_step * K / 2**30:.0f} GiB at K = {K}, skipped")
    return {"batch": args.batch, "rows": rows}


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
        synchronize(device)

    return step


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
