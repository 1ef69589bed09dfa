"""Layers that ordinary networks lack: cosine classifiers, weight transfer, and BatchNorm folded into convolutions."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnemonics.engine.distributed import stacked, summed, world


class ScaledConv2d(nn.Conv2d):
    """A convolution with weight transfer (Sun et al. 2019, as the paper uses it): W_eff = W * M.

    W, the weight of an ordinary convolution, is frozen; M, one factor per pair of channels, is learned and starts at 1,
    where the layer computes exactly what it computed before.
    """

    factor: nn.Parameter  # M, [out, in, 1, 1]

    @staticmethod
    def of(conv: nn.Conv2d) -> "ScaledConv2d":
        """The same convolution (without bias, in one group), with all factors 1. It shares the weight of `conv`."""
        with torch.device("meta"):  # its own weight is thrown away: draw nothing for it
            scaled = ScaledConv2d(
                conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
            )
        scaled.weight = conv.weight.requires_grad_(False)
        scaled.factor = nn.Parameter(torch.ones_like(conv.weight[:, :, :1, :1], memory_format=torch.contiguous_format))
        return scaled.train(conv.training)

    @property
    def effective_weight(self) -> Tensor:
        """W_eff [out, in, h, w]."""
        return self.weight * self.factor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.effective_weight, None, self.stride, self.padding)


def use_weight_transfer(model: nn.Module) -> None:
    """Put weight transfer into every convolution of `model` that does not have it, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d:
                setattr(module, name, ScaledConv2d.of(child))


def conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d | nn.Identity) -> Tensor:
    """`bn(conv(x))` for a convolution without bias.

    In eval mode BatchNorm is a fixed affine map per channel, so it is folded into the weights of the convolution: the
    same function of x and of all parameters, without reading and writing the activations a second time.
    """
    if isinstance(bn, nn.Identity):  # folded once for all
        return conv(x)
    if bn.training:
        return bn(conv(x)) if world() == 1 else shared_batch_norm(conv(x), bn)
    return F.conv2d(x, *folded_weights(conv, bn), conv.stride, conv.padding)


def folded_weights(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight [out, in, h, w] and bias [out] of the convolution that does what both do in eval mode."""
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    weight = conv.effective_weight if isinstance(conv, ScaledConv2d) else conv.weight
    return weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale


def random_class_weights(num_classes: int, num_features: int) -> nn.Parameter:
    """Class weights [num_classes, num_features], uniform in +-1/sqrt(num_features)."""
    bound = 1 / math.sqrt(num_features)
    return nn.Parameter(torch.empty(num_classes, num_features).uniform_(-bound, bound))


class CosineClassifier(nn.Module):
    """logits = sigma * <x/|x|, w/|w|> with one learnable sigma that starts at 1.

    Maps features [n, num_features] to logits [n, num_classes]; `weight` is [num_classes, num_features].
    """

    def cosines(self, features: Tensor) -> Tensor:
        """The logits without sigma, in [-1, 1]: float32, under autocast too, where bf16 would leave three digits."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def forward(self, features: Tensor) -> Tensor:
        return self.sigma * self.cosines(features)


class CosineLinear(CosineClassifier):
    """The classifier of phase 0."""

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.weight = random_class_weights(num_classes, num_features)
        self.sigma = nn.Parameter(torch.ones(1))


class SplitCosineLinear(CosineClassifier):
    """The classifier of later phases: old and new class weights are separate parameters under one sigma, so that a
    baseline may treat them apart (freeze the old ones, say). Old classes come first in the logits [n, old + new].
    """

    def __init__(self, num_features: int, num_old: int, num_new: int):
        super().__init__()
        self.old_weight = random_class_weights(num_old, num_features)
        self.new_weight = random_class_weights(num_new, num_features)
        self.sigma = nn.Parameter(torch.ones(1))

    @property
    def weight(self) -> Tensor:
        """All class weights [old + new, num_features]."""
        return torch.cat([self.old_weight, self.new_weight])


class BiasCorrected(nn.Module):
    """BiC's corrected classifier (Wu et al. 2019): scale * logits + shift, one pair per phase, fixed once fitted.

    `classifier` maps features [n, d] to logits [n, c]; `scale` and `shift`, float [c], repeat the pair of a phase for
    each of its classes. They are buffers: no training changes them.
    """

    def __init__(self, classifier: CosineLinear | SplitCosineLinear):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("scale", torch.ones_like(classifier.weight[:, 0]))
        self.register_buffer("shift", torch.zeros_like(classifier.weight[:, 0]))

    @property
    def weight(self) -> Tensor:
        """All class weights [c, d]."""
        return self.classifier.weight

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.classifier(features) + self.shift


Classifier = CosineLinear | SplitCosineLinear | BiasCorrected


def grown(classifier: Classifier, num_new: int) -> SplitCosineLinear | BiasCorrected:
    """The classifier of the next phase: all classes of `classifier` become old ones, `num_new` random ones are added.

    The logits of the old classes are what they were; new ones are not corrected. The result lives on the device of
    `classifier`.
    """
    num_old, num_features = classifier.weight.shape
    if isinstance(classifier, BiasCorrected):
        result = BiasCorrected(grown(classifier.classifier, num_new))
        result.scale[:num_old], result.shift[:num_old] = classifier.scale, classifier.shift
        return result
    result = SplitCosineLinear(num_features, num_old, num_new).to(classifier.weight)
    with torch.no_grad():
        result.old_weight.copy_(classifier.weight)
        result.sigma.copy_(classifier.sigma)
    return result


# BatchNorm of a batch that several processes share. torch's SyncBatchNorm does this on GPUs only; this one runs on any
# device, so that what is tested is what runs. It is made of torch's own kernels for BatchNorm: sums over images and
# places written as tensor operations take several times as long on a CPU.


def shared_batch_norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """`bn(x)` in training mode, for the share x [n, c, h, w] that this process has of a batch: normalised by mean and
    variance of the whole batch, which also go into the running statistics. A share may be empty (n = 0).

    The gradients of weight and bias are those of this share alone; DistributedDataParallel adds up the shares.
    """
    mean, variance, count = statistics = whole_batch_statistics(x.detach().to(bn.weight.dtype))
    with torch.no_grad():
        bn.num_batches_tracked.add_(1)
        bn.running_mean.lerp_(mean, bn.momentum)
        bn.running_var.lerp_(variance * (count / (count - 1)), bn.momentum)  # unbiased, as nn.BatchNorm2d keeps it
    return SharedNorm.apply(x, bn.weight, bn.bias, statistics, bn.eps)


def whole_batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [c], biased variance [c] and number of values per channel [1] of the whole batch.

    Each process sums the squares of the deviations from its own mean, to which those of the means are added (Chan et
    al. 1979): the difference of two large numbers, E[x²] - E[x]², would lose digits.
    """
    channels, values = x.shape[1], x.numel() // x.shape[1]
    own = x.new_zeros(2 * channels + 1)
    if values:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        own = torch.cat([mean, variance * values, x.new_full((1,), values)])  # filled there: no host waits
    means, squares, counts = stacked(own).split([channels, channels, 1], dim=1)  # (processes, c), same, (processes, 1)
    count = counts.sum(0)
    mean = (means * counts).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0) / count, count


class SharedNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, whose mean and variance depend on x on all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, statistics: tuple[Tensor, ...], eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *statistics)
        ctx.eps = eps
        return F.batch_norm(x, *statistics[:2], weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        precise, scale = x.to(weight.dtype), torch.rsqrt(variance + ctx.eps)
        own, share = weight.new_zeros(2, len(weight)), x.numel() // x.shape[1]  # gradients of bias and weight
        dx = torch.zeros_like(precise)
        if share:  # first as if it were the whole batch
            given = (gradient.to(weight.dtype), precise, weight, None, None, mean, scale)
            dx, own[1], own[0] = torch.ops.aten.native_batch_norm_backward(*given, True, ctx.eps, [True] * 3)
        difference = weight * scale * (own / max(1, share) - summed(own) / count)
        dx += F.batch_norm(precise, mean, variance, difference[1], difference[0], eps=ctx.eps)
        return dx.to(x.dtype), own[1], own[0], None, None
