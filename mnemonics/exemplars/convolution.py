"""A convolution whose second derivative costs as much as its first.

PyTorch computes one term of it as a convolution whose filter is a whole activation map, for which libraries have no
fast kernel. That term is the gradient of a weight, for which they have one. With C(x, w) the convolution, which is
bilinear, and X, W its transposes, dx = X(dy, w) and dw = W(dy, x), and for cotangents a of dx and b of dw:

    dy <- C(a, w) + C(x, b) = C([a, x], [w, b])        x <- X(dy, b)        w <- W(dy, a)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class Convolution(torch.autograd.Function):
    """torch.convolution(x, weight, bias, *geometry)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:3])
        return *ConvolutionBackward.apply(dy, *ctx.saved_tensors, ctx.geometry, wanted), None


class ConvolutionBackward(torch.autograd.Function):
    """Gradients of a convolution for its input, weight and bias, as far as `wanted`."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(dy, x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        return aten.convolution_backward(dy, x, weight, [len(weight)], *geometry, wanted)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None, c: Tensor | None) -> tuple[Tensor | None, ...]:
        dy, x, weight = ctx.saved_tensors
        for_dy = None
        if ctx.needs_input_grad[0]:
            terms = [term for term in ((a, weight), (x, b)) if term[0] is not None and term[1] is not None]
            terms = terms or [(x, torch.zeros_like(weight))]
            if ctx.geometry[-1] == 1:  # group
                terms = [tuple(torch.cat(part, 1) for part in zip(*terms, strict=True))]
            for_dy = sum(aten.convolution(*term, c if i == 0 else None, *ctx.geometry) for i, term in enumerate(terms))
        wanted = [given is not None and need for given, need in zip((b, a), ctx.needs_input_grad[1:3], strict=True)]
        of = (x if a is None else a, weight if b is None else b)
        for_x, for_weight, _ = aten.convolution_backward(dy, *of, None, *ctx.geometry, [*wanted, False])
        return for_dy, for_x, for_weight, None, None


class TwiceDifferentiable(TorchFunctionMode):
    """While entered, every convolution of torch.nn.functional is the one above, in whatever module. And weights are
    normalised by a formula: PyTorch's own kernel for it has a wrong second derivative."""

    defaults: Mapping[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in (torch.conv1d, torch.conv2d, torch.conv3d):
            names = ("input", "weight", *self.defaults)
            given = {**self.defaults, **dict(zip(names, args, strict=False)), **(kwargs or {})}
            x, weight, padding, n = given["input"], given["weight"], given["padding"], given["weight"].dim() - 2
            if not (isinstance(padding, str) or x.dim() < n + 2 or torch.is_autocast_enabled(x.device.type)):
                sizes = (given["stride"], padding, given["dilation"])
                sizes = [[size] * n if isinstance(size, int) else [*size] * (n // len(size)) for size in sizes]
                return Convolution.apply(x, weight, given["bias"], (*sizes, False, [0] * n, given["groups"]))
        if function is torch._weight_norm:
            v, g, dim = (*args, 0)[:3]
            return v * (g / torch.norm_except_dim(v, 2, dim))
        return function(*args, **(kwargs or {}))
