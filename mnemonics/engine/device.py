"""Device, random generators, clock and the facts about the machine that results.json records."""

import contextlib
import ctypes
import os
import platform
import re
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mnemonics.engine.distributed import local_world, world
from mnemonics.engine.errors import UsageError


def pick_device(device_name: str, gpu: int | None) -> torch.device:
    """The device of --device and --gpu.

    Raises:
        UsageError: when it is not there.
    """
    flag, name = ("--device", device_name) if gpu is None else ("--gpu", f"cuda:{gpu}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if world() == 1:
            return torch.device(name)
    device, count = device_named(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None and gpu is None:
        raise UsageError(f"{flag} {name}: not a device; cpu, cuda or cuda:1 would be")
    if device is not None and device.type not in ("cpu", "cuda"):
        raise UsageError(f"{flag} {name}: runs on cpu or cuda only")
    if device is None or (device.type == "cuda" and (device.index or 0) >= count):
        given = name if gpu is None else gpu
        raise UsageError(f"{flag} {given}: this machine has {count} CUDA devices; --device cpu works everywhere")
    return device if world() == 1 or device.type == "cpu" else gpu_of_process(device, flag, count)


def device_named(name: str) -> torch.device | None:
    """None for what is no device's name. PyTorch itself takes cuda:128 for cuda:-128, cuda:256 for cuda:0, and any
    number after cpu."""
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):  # ValueError: no UTF-8
        return None
    return device if str(device) == name and not name.startswith("cpu:") else None


def gpu_of_process(device: torch.device, flag: str, count: int) -> torch.device:
    """The GPU that this process has to itself, of the `count` on this machine. Raises UsageError if there is none."""
    if device.index is not None:
        raise UsageError(f"{flag} {device}: each of {world()} processes has its own GPU; --device cuda gives them out")
    if count < local_world():
        needed = f"{local_world()} processes on a machine with {count} CUDA devices"
        raise UsageError(f"{flag} {device}: {needed}; torchrun --nproc_per_node={count} would work")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """With `amp` "on", or "auto" on a GPU, bf16 for the operations that can do with it; weights, BatchNorm statistics,
    cosines and losses stay float32."""
    on = amp == "on" or (amp == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def prepare(device: torch.device, deterministic: bool) -> None:
    """Process-wide settings. Repeatable kernels are always on for a CPU, where they cost nothing. float32 means
    float32: where less precision will do, autocast and `tf32` say so. On a GPU cuDNN tries its algorithms on each new
    shape, where it need not choose the same ones again."""
    if device.index is not None:
        torch.cuda.set_device(device)  # what NCCL, CUDA graphs and all that is not told a device will use
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    if deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # the same as use_deterministic_algorithms, which also imports torch's compiler: evaluation does without its 140 MB
    torch.set_deterministic_debug_mode("error" if deterministic or device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that writes every tensor twice


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, if `allowed`, a CUDA device may multiply float32 numbers as TF32, of 10 bits after the point, not 23."""
    kinds = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 |= allowed
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.allow_tf32 = value


def seed_of(seed: int, phase: int, purpose: str) -> int:
    """A 63-bit seed for one purpose in one phase. Deriving every stream from these three, instead of drawing all from
    one, is what lets a resumed run make the draws of an uninterrupted one without storing any generator."""
    words = np.random.SeedSequence([seed, phase, zlib.crc32(purpose.encode())]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def generator(seed: int, phase: int, purpose: str, device: torch.device) -> torch.Generator:
    """A torch generator on `device` for one purpose in one phase."""
    return torch.Generator(device).manual_seed(seed_of(seed, phase, purpose))


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on a CUDA device, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory_bytes(device: torch.device) -> int:
    """Memory that this process may take, roughly: what is free, shared with the others on this machine on a CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    limits = [0]
    with contextlib.suppress(OSError, ValueError):  # not on Linux; no such file, or no limit in it
        available = re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
        limits = [int(size) * 1024 for size in available]
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        limits.append(max(0, limit - used))
    return min(limits) // local_world()


def give_back_memory() -> None:
    """Give memory that is free back to the system. glibc keeps it, in pieces that what comes next may not fit into."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def environment(device: torch.device) -> dict[str, str | int]:
    """What was measured on what: versions, device, CPU count, commit and command line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": device.type,
        "device_name": name,
        "cpu_count": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "processes": world(),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def commit() -> str:
    """Git commit of this code, "-dirty" appended if tracked files were changed; "unknown" if git does not have it."""
    options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], **options)
        described = "git describe --always --dirty --abbrev=40 --exclude=*".split()  # the hash alone, not a tag's name
        return subprocess.run(described, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
