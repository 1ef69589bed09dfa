"""Networks by the name that --network takes."""

import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnemonics.models import resnet_cifar, resnet_imagenet
from mnemonics.models.layers import BiasCorrected, ScaledConv2d, SplitCosineLinear, folded_weights, use_weight_transfer
from mnemonics.models.resnet_cifar import CifarResNet
from mnemonics.models.resnet_imagenet import ImageNetResNet

NETWORKS: dict[str, Callable[[int], nn.Module]] = {  # name -> function of the number of classes
    **{name: functools.partial(CifarResNet, depth) for name, depth in resnet_cifar.DEPTHS.items()},
    **{name: functools.partial(ImageNetResNet, depth) for name, depth in resnet_imagenet.DEPTHS.items()},
}


def make_network(name: str, num_classes: int, device: torch.device) -> nn.Module:
    """A new network with random weights, channels-last (about a third faster on a CPU), on `device`."""
    return NETWORKS[name](num_classes).to(device, memory_format=torch.channels_last)


def restore_network(name: str, weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The network `name` with the weights of a checkpoint, whose keys say which classifier it had and whether it had
    weight transfer."""
    corrected = "classifier.scale" in weights
    prefix = "classifier.classifier." if corrected else "classifier."
    split = f"{prefix}old_weight" in weights
    model = make_network(name, len(weights[prefix + ("old_weight" if split else "weight")]), device)
    if split:
        old, new = weights[f"{prefix}old_weight"], weights[f"{prefix}new_weight"]
        model.classifier = SplitCosineLinear(old.shape[1], len(old), len(new)).to(device)
    if corrected:
        model.classifier = BiasCorrected(model.classifier)
    if any(key.endswith(".factor") for key in weights):
        use_weight_transfer(model)
    model.load_state_dict(weights)
    return model


class Pair(NamedTuple):
    """A convolution and the BatchNorm after it."""

    conv_name: str
    conv: nn.Conv2d
    bn_name: str
    bn: nn.BatchNorm2d

    @property
    def learned_name(self) -> str:
        """That of the parameter of the convolution."""
        return f"{self.conv_name}.{'factor' if isinstance(self.conv, ScaledConv2d) else 'weight'}"


def conv_bn_pairs(model: CifarResNet) -> list[Pair]:
    """All of its convolutions and BatchNorms, which come by turns."""
    layers = [named for named in model.named_modules() if isinstance(named[1], nn.Conv2d | nn.BatchNorm2d)]
    return [Pair(*conv, *bn) for conv, bn in zip(layers[::2], layers[1::2], strict=True)]


def folded(model: CifarResNet) -> CifarResNet:
    """A frozen copy in eval mode that computes the same with a bias in each convolution instead of BatchNorm."""
    result = copy.deepcopy(model).eval().requires_grad_(False)
    for name, conv, bn_name, bn in conv_bn_pairs(result):
        with torch.device("meta"):
            plain = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        plain.weight, plain.bias = (nn.Parameter(part, requires_grad=False) for part in folded_weights(conv, bn))
        result.set_submodule(name, plain)
        result.set_submodule(bn_name, nn.Identity())
    return result
