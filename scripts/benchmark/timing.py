"""What all parts of benchmark.py share: timing by turns, and the comparison."""

import statistics
import time
from collections.abc import Callable

import torch

Times = dict[str, list[float]]  # seconds of each repetition


def synchronize() -> None:
    """Wait for the work queued on a CUDA device, if there is any."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def by_turns(functions: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> Times:
    """Seconds of each call, the functions taking turns, so that a slow minute of the machine hits all of them."""
    times: Times = {name: [] for name in functions}
    for repeat in range(repeats + warm_up):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if repeat >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def compared(what: str, times: Times, amount: float, unit: str = "images/s") -> dict:
    """Print and return how fast ours and plain are and their ratio: median, and smallest and largest of the turns."""
    ours, plain = (amount / statistics.median(times[name]) for name in ("ours", "plain"))
    ratios = [plain / ours for ours, plain in zip(times["ours"], times["plain"], strict=True)]
    median, spread = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}, n = {len(ratios)}"
    speeds = f"ours {ours:>11,.1f} {unit}, plain {plain:>10,.1f} {unit}"
    print(f"{what:<34} {speeds}: {median:.2f} x ({spread})", flush=True)
    return {"what": what, "unit": unit, "amount": amount, "seconds": times, "ratio": median}
