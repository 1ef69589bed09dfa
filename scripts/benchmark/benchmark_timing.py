"""What all parts of benchmark.py share: timing by turns, and how fast the machine could be at best."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Times = dict[str, list[float]]  # seconds of each repetition


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def by_turns(functions: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True) -> Times:
    """Seconds of each call, the functions taking turns, so that a slow minute of the machine hits all of them."""
    times: Times = {name: [] for name in functions}
    for repeat in range(repeats + warm_up):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def compared(what: str, times: Times, amount: float, unit: str) -> dict:
    """Print and return how fast ours and plain are and their ratio: median, and smallest and largest of the turns."""
    speeds = {name: amount / statistics.median(values) for name, values in times.items()}
    ratios = [plain / ours for ours, plain in zip(times["ours"], times["plain"], strict=True)]
    median, least, most = statistics.median(ratios), min(ratios), max(ratios)
    print(f"{what:<34} ours {speeds['ours']:>11,.1f} {unit}, plain {speeds['plain']:>10,.1f} {unit}: "
          f"{median:.2f} x ({least:.2f} to {most:.2f}, n = {len(ratios)})", flush=True)  # fmt: skip
    return {"what": what, "unit": unit, "amount": amount, "seconds": times, "ratio": median}


def floor(model: nn.Module, images: torch.Tensor, device: torch.device, bf16: bool) -> dict:
    """Print and return what a training step on `images` would take if arithmetic, or memory, were all it costs:
    its floating-point operations at the measured rate of a large matrix product, and reading and writing each
    activation of a convolution once, forward and backward, at the measured rate of a large copy."""
    sizes = []
    hooks = [
        m.register_forward_hook(lambda _, inputs, out: sizes.append(inputs[0].nbytes + out.nbytes))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    for hook in hooks:
        hook.remove()
    dtype = torch.bfloat16 if bf16 else torch.float32
    n = 8192 if device.type == "cuda" else 2048
    square, big = torch.randn(n, n, dtype=dtype, device=device), torch.zeros(2**26, device=device)
    out, copy = torch.empty_like(square), torch.empty_like(big)
    rate = 2 * n**3 / best(lambda: torch.mm(square, square, out=out), device)
    bandwidth = 2 * big.nbytes / best(lambda: copy.copy_(big), device)
    moved = 3 * sum(sizes)  # forward once, backward for inputs and for weights
    result = {
        "flops_per_step": counter.get_total_flops(),
        "matrix_product_flops_per_second": rate,
        "bytes_per_step": moved,
        "bytes_per_second": bandwidth,
        "images_per_second_by_arithmetic": len(images) * rate / counter.get_total_flops(),
        "images_per_second_by_memory": len(images) * bandwidth / moved,
    }
    print(f"floor of a step: {result['flops_per_step'] / 1e9:.1f} GFLOP at {rate / 1e9:,.0f} GFLOP/s would be "
          f"{result['images_per_second_by_arithmetic']:,.0f} images/s; {moved / 1e9:.2f} GB at {bandwidth / 1e9:.1f} "
          f"GB/s {result['images_per_second_by_memory']:,.0f} images/s")  # fmt: skip
    return result


def best(function: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
