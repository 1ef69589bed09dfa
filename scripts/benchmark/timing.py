"""What all parts of benchmark.py share: timing by turns, and how fast the machine could be at best."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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


def floor(model: nn.Module, images: torch.Tensor) -> dict:
    """What a training step on `images` would take if arithmetic, or memory, were all it costs: its floating-point
    operations at the measured rate of a large matrix product (on CUDA in bf16), and reading and writing each activation
    of a convolution once, forward and backward, at the measured rate of a large copy."""
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, out: sizes.append(inputs[0].nbytes + out.nbytes))
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    n, dtype = (8192, torch.bfloat16) if images.is_cuda else (2048, torch.float32)
    square, big = torch.randn(n, n, dtype=dtype, device=images.device), torch.zeros(2**26, device=images.device)
    out, copy = torch.empty_like(square), torch.empty_like(big)
    times = by_turns({"product": lambda: torch.mm(square, square, out=out), "copy": lambda: copy.copy_(big)}, 10)
    flops, moved = counter.get_total_flops(), 3 * sum(sizes)  # forward once, backward for inputs and for weights
    rate, bandwidth = 2 * n**3 / min(times["product"]), 2 * big.nbytes / min(times["copy"])
    by_arithmetic, by_memory = len(images) * rate / flops, len(images) * bandwidth / moved
    print(f"limits of a step: {by_arithmetic:,.0f} images/s by arithmetic, {by_memory:,.0f} images/s by memory")
    return {
        "flops_per_step": flops,
        "matrix_product_flops_per_second": rate,
        "bytes_per_step": moved,
        "bytes_per_second": bandwidth,
        "images_per_second_by_arithmetic": by_arithmetic,
        "images_per_second_by_memory": by_memory,
    }
