"""Batch normalisation of a batch that several processes share.

torch's SyncBatchNorm does this on GPUs only; this one runs on any device, so that what is tested is what runs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.engine.distributed import stacked, summed

OVER_IMAGES = (0, 2, 3)  # the dimensions of [n, c, h, w] that a channel's statistics are taken over


def shared_batch_norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """`bn(x)` in training mode, for the share x [n, c, h, w] that this process has of a batch: normalised by mean and
    variance of the whole batch, which also go into the running statistics. A share may be empty (n = 0).

    The gradients of weight and bias are those of this share alone; DistributedDataParallel adds up the shares.
    """
    mean, variance, count = whole_batch_statistics(x.detach().to(bn.weight.dtype))
    with torch.no_grad():
        bn.num_batches_tracked.add_(1)
        bn.running_mean.lerp_(mean, bn.momentum)
        bn.running_var.lerp_(variance * (count / (count - 1)), bn.momentum)  # unbiased, as nn.BatchNorm2d keeps it
    return SharedNorm.apply(x, bn.weight, bn.bias, mean, variance, count, bn.eps)


def whole_batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [c], biased variance [c] and number of values per channel [1] of the whole batch.

    Each process sums the squares of the deviations from its own mean, to which those of the means are added (Chan et
    al. 1979): the difference of two large numbers, E[x²] - E[x]², would lose digits.
    """
    channels, values = x.shape[1], x.numel() // x.shape[1]
    own = x.new_zeros(2 * channels + 1)
    if values:
        variance, mean = torch.var_mean(x, OVER_IMAGES, correction=0)
        own = torch.cat([mean, variance * values, x.new_tensor([values])])
    means, squares, counts = stacked(own).split([channels, channels, 1], dim=1)  # (processes, c), same, (processes, 1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0) / count, count


class SharedNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, whose mean and variance depend on x on all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        channel = (slice(None), None, None)  # [c] -> [c, 1, 1]
        standard = (x.to(scale.dtype) - mean[channel]) * scale[channel]
        dy = gradient.to(scale.dtype)
        own = torch.stack([dy.sum(OVER_IMAGES), (dy * standard).sum(OVER_IMAGES)])  # (2, c)
        dy_mean, dy_standard = summed(own) / count
        dx = (dy - dy_mean[channel] - standard * dy_standard[channel]) * (weight * scale)[channel]
        return dx.to(x.dtype), own[1], own[0], None, None, None, None
