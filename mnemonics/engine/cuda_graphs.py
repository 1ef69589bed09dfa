"""What a CUDA device does over and over, as a CUDA graph: one launch instead of hundreds.

Everything that only a GPU can do is in this file. `as_graph` returns the function itself on other devices, so that
all that is built on it runs the same steps there.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mnemonics.engine.distributed import world

WARM_UP = 3  # calls before the capture, in which libraries choose their kernels and allocate their workspaces


class Captured:
    """A function of tensors on a CUDA device, captured once as a CUDA graph.

    Shapes are those of `example`; the results are overwritten by the next call. The function may change `changed` (the
    weights, say), which are set back after each of the calls that the capture needs, and what does not matter. With
    `other` it works in the memory of that one, which is for two whose results nobody needs once either is called again.
    """

    def __init__(
        self,
        function: Callable,
        example: Sequence[Tensor],
        changed: Sequence[Tensor] = (),
        other: "Captured | None" = None,
    ):
        self.inputs = [tensor.detach().clone() for tensor in example]
        before = [tensor.detach().clone() for tensor in changed]

        @torch.no_grad()
        def set_back() -> None:
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*self.inputs)
                set_back()
        torch.cuda.current_stream().wait_stream(side)
        self.graph, pool = torch.cuda.CUDAGraph(), None if other is None else other.graph.pool()
        with torch.cuda.graph(self.graph, pool, capture_error_mode="thread_local"):  # a loader's thread pins memory too
            self.results = function(*self.inputs)
        set_back()

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        for static, new in zip(self.inputs, inputs, strict=True):
            static.copy_(new)
        self.graph.replay()
        return self.results


def capturable(device: torch.device) -> bool:
    """Whether what is done over and over there is captured: on a GPU, if this is the only process."""
    return device.type == "cuda" and world() == 1


def as_graph(function: Callable, changed: Callable[[], Sequence[Tensor]], enabled: bool) -> Callable:
    """`function` (of tensors whose first dimension is the batch), captured where `enabled`, which needs a CUDA device.

    It is captured once for each size of a batch: there are two, as the last one of an epoch may differ.

    Args:
        changed: gives the tensors that a call changes.
    """
    if not enabled:
        return function
    captured: dict[int, Captured] = {}  # by the size of the batch

    def call(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        size = len(inputs[0])
        if size not in captured:
            captured[size] = Captured(function, inputs, changed(), next(iter(captured.values()), None))
        return captured[size](*inputs)

    return call
