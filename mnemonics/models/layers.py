"""Layers that ordinary networks lack: cosine classifiers, and BatchNorm folded into convolutions in eval mode."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """`bn(conv(x))` for a convolution without bias.

    In eval mode BatchNorm is a fixed affine map per channel, so it is folded into the weights of the convolution: the
    same function of x and of all parameters, without reading and writing the activations a second time.
    """
    if bn.training:
        return bn(conv(x))
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    weight, bias = conv.weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def cosine(features: Tensor, weight: Tensor) -> Tensor:
    """Cosine similarity of features [n, d] to class weights [c, d]: float [n, c]."""
    return F.linear(F.normalize(features, dim=1), F.normalize(weight, dim=1))


def random_class_weights(num_classes: int, num_features: int) -> nn.Parameter:
    """Class weights [num_classes, num_features], uniform in +-1/sqrt(num_features)."""
    bound = 1 / math.sqrt(num_features)
    return nn.Parameter(torch.empty(num_classes, num_features).uniform_(-bound, bound))


class CosineLinear(nn.Module):
    """Cosine classifier of phase 0: logits = sigma * <x/|x|, w/|w|> with one learnable sigma that starts at 1.

    Maps features [n, num_features] to logits [n, num_classes].
    """

    def __init__(self, num_features: int, num_classes: int):
        super().__init__()
        self.weight = random_class_weights(num_classes, num_features)
        self.sigma = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor) -> Tensor:
        return self.sigma * cosine(features, self.weight)


class SplitCosineLinear(nn.Module):
    """Cosine classifier of later phases: old and new class weights are separate parameters under one sigma, so that a
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

    def forward(self, features: Tensor) -> Tensor:
        return self.sigma * cosine(features, self.weight)


def grown(classifier: CosineLinear | SplitCosineLinear, num_new: int) -> SplitCosineLinear:
    """The classifier of the next phase: all classes of `classifier` become old ones, `num_new` random ones are added.

    The logits of the old classes are what they were. The result lives on the device of `classifier`.
    """
    num_old, num_features = classifier.weight.shape
    result = SplitCosineLinear(num_features, num_old, num_new).to(classifier.weight)
    with torch.no_grad():
        result.old_weight.copy_(classifier.weight)
        result.sigma.copy_(classifier.sigma)
    return result
