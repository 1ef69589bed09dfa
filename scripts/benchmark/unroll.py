"""`benchmark.py unroll`: the exemplar gradient, against differentiating through the whole unrolled graph.

Peak memory is what the first step takes beyond what was there before it: of allocated tensors on a CUDA device, the
capture of CUDA graphs included, of resident pages of a process of its own on a CPU.
"""

import argparse
import multiprocessing
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import by_turns
from torch.func import functional_call

from mnemonics.engine.device import free_memory_bytes, prepare
from mnemonics.exemplars.unroll import GraphedSteps, Layout, Schedule, Steps, plain_unrolled_gradient, unrolled_gradient
from mnemonics.models import make_network


def unroll(args: argparse.Namespace) -> dict:
    """Print time and peak memory of one outer step for each K: ours without and with kept graphs, on CUDA also as CUDA
    graphs, and plain."""
    print(f"one outer step, {args.network}, 32x32, batch {args.batch}, float32")
    rows, plain_bytes = [], 0.0  # of plain, for each of its steps
    alone = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)  # the peak of a process never falls
    for K in args.steps:
        names = ["ours", "kept", *(["graphed"] if args.device.startswith("cuda") else []), "plain"]
        if plain_bytes * K > args.max_plain_gib * 2**30:
            print(f"K = {K}: plain would need about {plain_bytes * K / 2**30:.0f} GiB, skipped")
            names.remove("plain")
        memory = {name: alone.apply(peak_memory, (args, name, K)) for name in names}
        times = by_turns({n: make_step(args, n, K) for n in names}, max(1, args.repeats * args.steps[0] // K))
        seconds = {name: statistics.median(values) for name, values in times.items()}
        ratio = None
        if "plain" in names:
            plain_bytes, ratio = memory["plain"] / K, seconds["ours"] / seconds["plain"]
        cells = [f"{name} {seconds[name]:.3f} s, {memory[name] / 2**20:.0f} MiB" for name in names]
        print(f"K = {K}:", "; ".join(cells), *([f"({ratio:.2f} x the time of plain)"] if ratio else []), flush=True)
        rows.append({"K": K, "seconds": times, "peak_bytes": memory, "ratio": ratio})
    alone.terminate()
    growth = rows[-1]["peak_bytes"]["ours"] / rows[0]["peak_bytes"]["ours"]
    print(f"ours: peak memory at K = {args.steps[-1]} is {growth:.2f} x that at K = {args.steps[0]}")
    return {"batch": args.batch, "rows": rows}


def make_step(args: argparse.Namespace, name: str, K: int) -> Callable[[], object]:
    """A function that computes one exemplar gradient."""
    device = torch.device(args.device)
    prepare(device, deterministic=False)
    torch.manual_seed(0)
    model = make_network(args.network, 10, device).eval()
    x, xv = (torch.randn(args.batch, 3, 32, 32).to(device, memory_format=torch.channels_last) for _ in range(2))
    labels = torch.arange(args.batch, device=device) % 10
    parameters = dict(model.named_parameters())

    def loss(parameters, images):
        return F.cross_entropy(functional_call(model, parameters, (images,)), labels)

    memory = free_memory_bytes(device) // 2 if name == "kept" else 0
    steps = (GraphedSteps if name == "graphed" else Steps)(loss, Layout(parameters), memory)
    gradient = plain_unrolled_gradient if name == "plain" else unrolled_gradient
    schedule = Schedule((), torch.full((K,), 0.01, device=device))
    return lambda: gradient(steps, lambda p: loss(p, xv), parameters, x, schedule)


def peak_memory(args: argparse.Namespace, name: str, K: int) -> int:
    """Bytes that a step takes at its peak, beyond what is there after one on two images, which loads the libraries."""
    make_step(argparse.Namespace(**vars(args) | {"batch": 2}), "ours", 1)()
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
