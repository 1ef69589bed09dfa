"""Several processes, one for each GPU, started by torchrun: who is who, and what they tell each other.

All of them hold the whole model and state and make the same random draws, so each knows what every batch consists of.
Of a batch, process r of G takes the rows r, r + G, r + 2 G, ... Without torchrun, or with one process, there is no
group and each function gives back what it was given.

Tensors on a CPU go through Gloo, those on a GPU through NCCL. What rank 0 does alone (a download, waiting for another
run) may take hours: the others wait for it in a second group, which has all the time.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

COLLECTIVE_LIMIT = timedelta(minutes=2)  # the processes work in step: whoever is this late hangs
ALONE_LIMIT = timedelta(days=30)
LAST_WORDS = 10  # seconds that the others stay when one has failed, so that it can say why

T = TypeVar("T")
_store: dist.Store | None = None  # beside torch's process group, which is global too
_patient: dist.ProcessGroup | None = None  # in which the others wait for rank 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_world() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started together with this one, if any, and leave them at the end.

    Inside, only rank 0 writes to the standard output. Of the exceptions that end several processes only the first
    comes out; the others wait to be ended by torchrun, which it does when the first has ended.
    """
    global _store, _patient
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    _store, number, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group = dist.PrefixStore("group", _store)
    dist.init_process_group(backend, store=group, rank=number, world_size=count, timeout=COLLECTIVE_LIMIT)
    _patient = dist.new_group(backend="gloo", timeout=ALONE_LIMIT)
    with open(os.devnull, "w") as nowhere:
        try:
            with contextlib.redirect_stdout(sys.stdout if number == 0 else nowhere):
                yield
        except BaseException:
            if first_to_fail():
                raise
            time.sleep(LAST_WORDS)
            raise SystemExit(1) from None
    dist.destroy_process_group()  # not after an error, when the others may not answer any more


def first_to_fail() -> bool:
    """Whether this process, which ends with an exception, is the first to do so. From now on the others know."""
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # the store has gone with the process that held it
        return False


def from_main(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, which alone calls it. The others wait for it, however long it takes."""
    if world() == 1:
        return work()
    told = [work() if is_main() else None]
    dist.broadcast_object_list(told, group=_patient)
    return told[0]


def main_first(work: Callable[[], T]) -> T:
    """What `work` gives, called by every process, but by rank 0 before the others: what it downloads is there then.
    Returns when all are done, however long that takes."""
    if world() == 1:
        return work()
    result = work() if is_main() else None
    dist.barrier(_patient)
    result = result if is_main() else work()
    dist.barrier(_patient)
    return result


@torch.no_grad()
def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Set `tensors` to what they are on rank 0, in place. What all processes compute alike may differ in the last bit
    on GPUs, and such differences grow."""
    for tensor in tensors if world() > 1 else ():
        if tensor.numel():
            value = tensor.detach().contiguous()  # a copy only where it is not contiguous
            dist.broadcast(value, 0)
            tensor.copy_(value)


def own_rows() -> slice:
    """The rows of a batch that are this process's share: none, where the batch is too small."""
    return slice(rank(), None, world())


def summed(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, detached."""
    if world() == 1:
        return tensor.detach()
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(tensor)
    return tensor


def stacked(tensor: Tensor) -> Tensor:
    """`tensor` ([n, ...], of the same shape everywhere) of all processes: [processes, n, ...], detached."""
    everyone = tensor.new_empty(world() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(everyone, tensor.detach().contiguous())
    return everyone.unflatten(0, (world(), -1))


def gathered(mine: Tensor, total: int) -> Tensor:
    """All rows [total, ...] of a tensor of which each process has its `own_rows`, in order.

    Differentiable, for a loss that every process computes from all rows: of its gradient with respect to them, each
    process takes that of its own rows times the number of processes. So the *mean* over the processes is the gradient
    both of what came before (each process adds its rows' part to it) and of what comes after (the same everywhere).
    """
    if world() == 1:
        return mine
    padded = mine.new_zeros(math.ceil(total / world()), *mine.shape[1:])  # shares may differ by one row
    padded[: len(mine)] = mine.detach()
    rows = stacked(padded).transpose(0, 1).flatten(0, 1)[:total].clone()
    rows[own_rows()] = mine.detach() + world() * (mine - mine.detach())  # what is added is 0, but for its gradient
    return rows
